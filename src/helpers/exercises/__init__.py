"""Checks for the exercises. Each tries the reader's function and prints what it did, and a hint if it is not right.

A check that fails says what was expected, what came instead and, where the answer is a mistake that many make, which
one. `progress` sums up a chapter. A new chapter can begin with checks of its own, made of `Case` and `check`. The
mechanism is in `_check`, the checks of each chapter in a module of its own.
"""

from helpers.exercises._check import Case, check, progress
from helpers.exercises.chapter_1 import check_cross_entropy, check_eps_in_normalized_units, check_softmax
from helpers.exercises.chapter_2 import check_coverage, check_robust_error, check_worst_margin_l2
from helpers.exercises.chapter_3 import check_pgd_step, check_project, check_smallest_eps
from helpers.exercises.chapter_4 import check_difference, check_least_likely, check_success
from helpers.exercises.chapter_5 import check_danskin, check_robust_step, check_trades_loss
from helpers.exercises.chapter_6 import check_distance, check_robust_gaussian, check_support_l1
from helpers.exercises.chapter_7 import MysteryDefence, check_eleventh, check_mystery, check_straight_through
from helpers.exercises.chapter_8 import check_interval_layer, check_proved_by_any, check_relax_relu
from helpers.exercises.chapter_9 import check_both_ends, check_two_cases
from helpers.exercises.chapter_10 import check_mixed_loss, check_small_box, check_worst_inputs
from helpers.exercises.chapter_11 import check_draws_needed, check_linf_radius, check_radius
from helpers.exercises.chapter_12 import check_follows, check_lift, check_other_class
from helpers.exercises.chapter_13 import check_best_letters, check_longest, check_universal_step

__all__ = [
    "Case",
    "MysteryDefence",
    "check",
    "check_best_letters",
    "check_both_ends",
    "check_coverage",
    "check_cross_entropy",
    "check_danskin",
    "check_difference",
    "check_distance",
    "check_draws_needed",
    "check_eleventh",
    "check_eps_in_normalized_units",
    "check_follows",
    "check_interval_layer",
    "check_least_likely",
    "check_lift",
    "check_linf_radius",
    "check_longest",
    "check_mixed_loss",
    "check_mystery",
    "check_other_class",
    "check_pgd_step",
    "check_project",
    "check_proved_by_any",
    "check_radius",
    "check_relax_relu",
    "check_robust_error",
    "check_robust_gaussian",
    "check_robust_step",
    "check_small_box",
    "check_smallest_eps",
    "check_softmax",
    "check_straight_through",
    "check_success",
    "check_support_l1",
    "check_trades_loss",
    "check_two_cases",
    "check_universal_step",
    "check_worst_inputs",
    "check_worst_margin_l2",
    "progress",
]
