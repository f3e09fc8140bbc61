"""Sentences: each direction and outcome, and nothing that an interval does not support."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import results
from results import arm, difference, plane, study

from pipelines.front.results import Claim, StudyResult
from pipelines.report import words
from pipelines.report.reading import Listing, Run
from pipelines.show.estimates import Estimate

UP, DOWN, PEAK = ("fragile", "up", "base"), ("vendi", "down", "base"), ("gold", "down", "peak")
COVERS, REACHES = (f", the interval {verb} zero" for verb in ("covers", "reaches"))
UNDER = "under its peak along training (tuned − peak)"
KL, LORA = difference("kl", "aig", 0.04, "ahead"), difference("aig", "lora", 0.08, "ahead")
EARLY = difference("aig", "early", 0.01, "undecided")
OURS = difference("kl-aig", "kl", 0.02, "ahead", arms=(6, 3))
ALL = (KL, LORA, EARLY, OURS)
GOLD_CLAIM = Claim("gold", "down", "peak", Estimate(-0.12, -0.41, 0.0))


def run_of(*studies: StudyResult, **more) -> Run:
    return Run(Path("demo"), "", {}, results.front(*studies, **more), Listing(()), {})


@pytest.mark.parametrize(
    ("claim", "interval", "kind", "said", "end"),
    [
        (UP, (0.5, 1.5), "yes", "Proxy reward rises (tuned − base): +1.00 [+0.50, +1.50]", ""),
        (UP, (-0.5, 2.5), "open", "Proxy reward does not clearly rise (tuned − base): +1.0 [−0.5, +2.5]", COVERS),
        (UP, (0.0, 2.0), "open", "Proxy reward does not clearly rise (tuned − base): +1.0 [0.0, +2.0]", REACHES),
        (UP, (-1.5, -0.5), "no", "Proxy reward does not rise (tuned − base): −1.00 [−1.50, −0.50]", ", the opposite"),
        (UP, (math.nan, math.nan), "open", "Proxy reward rises (tuned − base): not measured", ""),
        (DOWN, (-1.5, -0.5), "yes", "Diversity falls (tuned − base): −1.00 [−1.50, −0.50]", ""),
        (DOWN, (-2.5, 0.5), "open", "Diversity does not clearly fall (tuned − base): −1.0 [−2.5, +0.5]", COVERS),
        (DOWN, (0.5, 1.5), "no", "Diversity does not fall (tuned − base): +1.00 [+0.50, +1.50]", ", the opposite"),
        (DOWN, (math.nan, math.nan), "open", "Diversity falls (tuned − base): not measured", ""),
        (PEAK, (-1.5, -0.5), "yes", f"Gold falls {UNDER}: −1.00 [−1.50, −0.50]", ""),
        (PEAK, (-2.0, 0.0), "open", f"Gold does not clearly fall {UNDER}: −1.0 [−2.0, 0.0]", REACHES),
    ],
)
def test_a_claim_is_denied_unless_its_interval_supports_it(claim, interval, kind, said, end) -> None:
    low, high = interval
    several = study(train_seeds=(0, 1, 2))
    sentence = words.claim_sentence(several, Claim(*claim, Estimate((low + high) / 2, low, high)))
    assert (sentence.kind, sentence.text) == (kind, f"{said}{end}.")


def test_a_claim_without_an_interval_says_so_and_is_not_in_the_headline() -> None:
    claim = Claim(*UP, Estimate(0.5))
    sentence = words.claim_sentence(study(train_seeds=(0, 1, 2)), claim)
    assert (sentence.text, sentence.tag) == (
        "Proxy reward rises (tuned − base): +0.500, without an interval.",
        "no interval",
    )
    assert words.tuning_headline(study(claims=(claim,))) == ""


@pytest.mark.parametrize(
    ("verdict", "flipped", "verb", "kind", "tag"),
    [
        ("ahead", False, "beats", "yes", "ahead"),
        ("behind", False, "loses to", "no", "behind"),
        ("ahead", True, "loses to", "no", "behind"),
        ("behind", True, "beats", "yes", "ahead"),
    ],
)
def test_a_difference_is_told_from_aigs_side_whichever_way_it_was_taken(verdict, flipped, verb, kind, tag) -> None:
    pair = ("kl", "aig") if flipped else ("aig", "kl")
    made = study(plane("fragile", difference(*pair, 0.5, verdict)))
    (sentence,) = words.verdicts(made, "fragile")
    assert words.undecided(made) == []
    shown = "−0.50 [−0.80, −0.20]" if flipped else "+0.50 [+0.20, +0.80]"
    arms = "3 arms against 4" if flipped else "4 arms against 3"
    assert (sentence.text, sentence.kind, sentence.tag) == (
        f"On proxy × diversity AIG on KL 0 (1 training) {verb} KL (4 trainings) for this adapter: {shown} in "
        f"hypervolume, {arms}, compared at 3 each, adjusted p 0.02.",
        kind,
        tag,
    )


@pytest.mark.parametrize("verdict", ["undecided", None])
@pytest.mark.parametrize("pair", [("aig", "kl"), ("kl", "aig")])
def test_a_difference_without_a_decision_is_no_sentence_but_a_row_from_aigs_side(verdict, pair) -> None:
    made = study(plane("fragile", difference(*pair, 0.5, verdict), LORA), plane("gold", EARLY))
    assert [sentence.tag for sentence in words.study_sentences(made)] == ["ahead"]
    (proxy, row), (gold, early) = words.undecided(made)
    assert (proxy, row.a, row.b, row.verdict) == ("proxy", "aig", "kl", verdict)
    assert row.estimate.value == (0.5 if pair[0] == "aig" else -0.5) and (gold, early) == ("gold", EARLY)
    title = "2 undecided comparisons" if verdict else "1 undecided comparison, 1 without a verdict"
    assert words.undecided_title(made) == title


def test_what_was_not_compared_is_said() -> None:
    assert words.study_sentences(study())[0].text == "Annealing was not compared with another family."


def test_the_headline_says_what_aig_beats_what_it_does_not_and_what_it_loses_to() -> None:
    both = study(plane("fragile", *ALL), plane("robust", LORA), plane("gold", KL, EARLY, EARLY))
    assert words.headline(both) == (
        "AIG on KL 0 beats LoRA scaling and loses to KL for this adapter; AIG on every KL weight beats KL for this "
        "adapter; 1 other is undecided"
    )
    assert words.headline_elsewhere(both) == [
        "With held-out reward in the proxy's place, AIG on KL 0 beats LoRA scaling for this adapter",
        "With gold in the proxy's place, AIG on KL 0 loses to KL for this adapter; 2 others are undecided",
    ]
    assert words.headline(study()) == "Annealing was not compared with another family"


def test_a_headline_without_a_decision_counts_what_was_compared() -> None:
    undecided = study(plane("fragile", EARLY, EARLY), plane("gold", EARLY))
    said = "o way to sample is clearly ahead of another for this adapter"
    assert words.headline(undecided) == f"N{said} (2 comparisons)"
    assert words.headline_elsewhere(undecided) == [f"With gold in the proxy's place, n{said} (1 comparison)"]


def test_a_headline_too_long_to_name_every_rival_counts_them() -> None:
    rivals = ("kl", "lora", "early", "soup", "best", "guidance", "autoguidance")
    many = study(plane("fragile", *(difference("aig", rival, 0.5, "ahead") for rival in rivals), KL), plane("gold", KL))
    assert words.headline(many) == "AIG on KL 0 beats 7 others and loses to KL for this adapter"


def test_where_there_is_no_verdict_nothing_is_ahead() -> None:
    few = difference("aig", "kl", 0.5, None, estimate=Estimate(0.5))
    several = study(plane("fragile", few), plane("gold", few, few))
    assert words.headline(several) == "1 comparison of families has no verdict"
    assert words.headline_elsewhere(several) == []
    assert words.caveats(run_of(prompts=2))[0] == "2 prompts: no interval below 4, and no verdict."


def test_the_headline_on_tuning_joins_what_holds_and_what_does_not() -> None:
    rises, falls = Claim(*UP, Estimate(5, 4, 6)), Claim(*DOWN, Estimate(-2, -3, -1))
    assert words.tuning_headline(study(claims=(rises, falls, GOLD_CLAIM))) == (
        "Proxy reward rises and diversity falls, but gold does not clearly fall under its peak along training for this "
        "adapter"
    )
    fails = Claim(*DOWN, Estimate(2, 1, 3))
    assert words.tuning_headline(study(claims=(fails,))) == "Diversity does not fall for this adapter"
    assert words.tuning_headline(study()) == ""


@pytest.mark.parametrize(
    ("seeds", "scope"),
    [((), " for this adapter"), ((4,), " for this adapter"), ((0, 1), " for these two adapters"), ((0, 1, 2), "")],
)
def test_fewer_than_three_training_seeds_speak_of_their_own_adapters_alone(seeds, scope) -> None:
    made = study(plane("fragile", KL, EARLY), train_seeds=seeds, claims=(GOLD_CLAIM,))
    assert words.headline(made).split("; ")[0].endswith(f"loses to KL{scope}")
    assert words.tuning_headline(made).endswith(f"under its peak along training{scope}")
    told = words.claim_sentence(made, GOLD_CLAIM).text
    assert told.endswith(f"[−0.41, 0.00]{',' * bool(scope)}{scope}, the interval reaches zero.")


def test_several_settings_are_counted() -> None:
    settings = [
        study(plane("fragile", KL, LORA), train_seeds=(0, 1, 2)),
        study(plane("fragile", KL), train_seeds=(0, 1, 2)),
    ]
    assert words.summary(settings) == (
        "AIG on KL 0 clearly beats LoRA scaling in 1 of 1 settings and loses to KL in 2 of 2 settings"
    )
    assert words.summary([study(plane("fragile", KL, EARLY))]) == (
        "AIG on KL 0 clearly loses to KL in 1 of 1 settings; 1 other is undecided (one adapter in each setting)"
    )
    assert words.summary([study(plane("fragile", EARLY), train_seeds=(0, 1))] * 2) == (
        "No way to sample is clearly ahead of another (2 comparisons) (two adapters in each setting)"
    )
    assert words.summaries_elsewhere(settings) == []


def test_the_best_arm_is_told_with_the_chance_that_it_is_too_good() -> None:
    values = {"base": ("base", 1.0), "tuned": ("tuned", 3.0), "linear": ("aig", 2.0), "half": ("lora", 4.0)}
    arms = [arm(name, family, metrics={"gold": Estimate(v, v - 0.2, v + 0.2)}) for name, (family, v) in values.items()]
    sentence = words.best_arms(study(plane(), plane("gold"), arms=tuple(arms)), "gold")
    assert sentence is not None and sentence.text == (
        "Highest mean of gold, selected among 4 arms and so too high on average: half (LoRA scaling) with 4.00 [3.80, "
        "4.20]; the highest of AIG's 1 is linear (AIG) with 2.00 [1.80, 2.20]; base has 1.00 [0.80, 1.20]; tuned has "
        "3.00 [2.80, 3.20]."
    )
    broken = arm("linear", "aig", broken="flat", metrics={"gold": Estimate(9.0)})
    assert words.best_arms(study(plane("gold"), arms=(broken, arms[0])), "gold") is None


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            {"split": "given", "train": 200, "evaluate": 16, "overlap": 3, "overlap_validate": 1, "elsewhere": 0},
            "Trained on 200 prompts, judged on 16, of which 3 were trained on too (1 of them in validations",
        ),
        (
            {"split": "embedded", "train": 32, "evaluate": 16, "overlap": 0, "overlap_validate": 0, "elsewhere": 0},
            "Trained on 32 captions of the embedded world, judged on 16 held-out ones: none is in both.",
        ),
    ],
)
def test_a_report_says_how_many_of_the_prompts_that_judge_were_trained_on(counts, said) -> None:
    assert words.caveats(run_of(prompt_lists=counts))[0].startswith(said)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((), "how another training of such an adapter would differ is not known here."),
        ((4,), "there is one training seed (4), so another training run may differ by more."),
        ((0, 1), "with 2 training seeds claims and differences are of these adapters alone."),
        ((0, 1, 2), "of 3 training seeds a claim or difference is the mean"),
    ],
)
def test_a_report_says_what_is_known_of_other_trainings(seeds, said) -> None:
    assert any(said in text for text in words.caveats(run_of(study(train_seeds=seeds))))
