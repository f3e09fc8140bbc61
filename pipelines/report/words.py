"""What the data show, in sentences: every number with its interval, and no claim that an interval does not support."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aig.pareto import LEAST_SEEDS
from pipelines.front.families import OURS
from pipelines.front.results import AHEAD, BEHIND, ROLES, UNDECIDED, Arm, Claim, Difference, Run, Study, family_name
from pipelines.show.estimates import decimals, interval, number

_VERBS = {
    "rises": ("rise", 1),
    "grows": ("grow", 1),
    "increases": ("increase", 1),
    "improves": ("improve", 1),
    "falls": ("fall", -1),
    "drops": ("drop", -1),
    "shrinks": ("shrink", -1),
    "decreases": ("decrease", -1),
}


@dataclass(frozen=True)
class Sentence:
    """A sentence of the report.

    kind: what the interval says: yes, no (the opposite), open (it covers zero), or plain for values without a claim.
    """

    text: str
    kind: str = "plain"
    tag: str = "values"


def seeds_apart(by_seed: Mapping[str, float], digits: int = 2) -> str:
    """The values of several training seeds; empty for one."""
    told = [number(value, digits, plus=True) for value in by_seed.values() if math.isfinite(value)]
    return f" ({', '.join(told)} in training seeds {_list(list(by_seed), 'and')})" if len(told) > 1 else ""


def claim_sentence(claim: Claim, scope: str = "") -> Sentence:
    """A claim, or its denial if the interval covers zero or lies on the other side; of which adapters, where of few."""
    text = claim.text[:1].upper() + claim.text[1:].replace(" - ", " − ")
    found = next((word for word in re.findall(r"\w+", claim.text) if word in _VERBS), None)
    expected = claim.expected or (_VERBS[found][1] if found else 1)
    if not math.isfinite(claim.estimate.value):
        return Sentence(f"{text}: not measured.", "open", "not measured")
    shown = interval(claim.estimate, plus=True) + seeds_apart(claim.by_seed, decimals(claim.estimate))
    shown += f", {scope}" if scope else ""
    if not claim.estimate.known:
        return Sentence(f"{text}: {shown}, without an interval.", "open", "no interval")
    if claim.estimate.sign == expected:
        return Sentence(f"{text}: {shown}.", "yes", "shown")
    sure = "" if claim.estimate.sign else "clearly "
    denied = f"It does not {sure}hold that {claim.text}"
    if found:
        denied = re.sub(rf"\b{found}\b", f"does not {sure}{_VERBS[found][0]}", text, count=1)
    if claim.estimate.sign:
        return Sentence(f"{denied}: {shown}, the opposite.", "no", "opposite")
    touches = "reaches" if 0 in claim.estimate[1:] else "covers"
    return Sentence(f"{denied}: {shown}, the interval {touches} zero.", "open", "not shown")


def broken_sentence(arm: Arm) -> Sentence:
    """What is wrong with an arm whose images are unsound, and what follows."""
    return Sentence(f"{arm.label}: {arm.broken}. It is shown, on no front and in no hypervolume.", "no", "broken")


def warning_sentence(arm: Arm) -> Sentence:
    """What to know of an arm of little precision, which takes part like any other."""
    text = f"{arm.label}: {arm.warning}. Another style has little precision too: look at its images. It takes part."
    return Sentence(text, "open", "warning")


def comparisons(differences: Sequence[Difference], families: Sequence[str] = OURS) -> list[Difference]:
    """The differences in which one of the families takes part, each as that family less the other."""
    found = []
    for family in families:
        found += [d for d in differences if d.a == family]
        found += [d.flipped for d in differences if d.b == family]
    return found


def difference(found: Difference) -> str:
    """A difference with its interval and its values by training seed."""
    return interval(found.estimate, plus=True) + seeds_apart(found.by_seed, decimals(found.estimate))


def verdict(study: Study, metric: str) -> list[Sentence]:
    """Where AIG's fronts have more hypervolume than another family's on a metric's plane, where less, where neither.

    As `front` decided: the p-value is adjusted, so an interval may exclude zero and neither be ahead.
    """
    sentences = []
    for found in comparisons(study.planes[metric].differences):
        other = study.counted(found.b)
        where = f"On {study.role_of(metric)} × diversity {study.counted(found.a)}"
        shown = f"{difference(found)} in hypervolume, {compared(found)}"
        p, scope = f"adjusted p {found.p:.2g}", f" {study.scope}" if study.scope else ""
        if not math.isfinite(found.estimate.value):
            sentences.append(Sentence(f"{where} was not measured against {other}.", "open", "not measured"))
        elif found.verdict is None:
            sentences.append(Sentence(f"{where} against {other}: {shown}; no verdict.", "plain", "no verdict"))
        elif found.verdict == AHEAD:
            sentences.append(Sentence(f"{where} beats {other}{scope}: {shown}, {p}.", "yes", "AIG ahead"))
        elif found.verdict == BEHIND:
            text = f"{where} does not beat {other} but loses to it{scope}: {shown}, {p}."
            sentences.append(Sentence(text, "no", "AIG behind"))
        else:
            text = f"{where} does not clearly beat {other}{scope}: {shown}, {p}, so neither is ahead."
            sentences.append(Sentence(text, "open", UNDECIDED))
    return sentences


def compared(difference: Difference) -> str:
    """The sizes of two families, and at which they were compared."""
    a, b = difference.arms
    if a == b:
        return f"{a} arm{'s' * (a != 1)} each"
    return f"{a} arm{'s' * (a != 1)} against {b}, compared at {difference.size} each"


def best_arms(study: Study, metric: str) -> Sentence | None:
    """Which arm has the highest mean of a metric that was not trained on, and how AIG's best stands beside it.

    The highest of several means is too high on average (the winner's curse), so this is no claim, and says so.
    """
    measured = [arm for arm in study.arms if math.isfinite(arm.metric(metric).value) and not arm.broken]
    guided = [arm for arm in measured if arm.family in OURS]
    if not measured or not guided:
        return None
    best = max(measured, key=lambda arm: arm.metric(metric).value)
    ours = max(guided, key=lambda arm: arm.metric(metric).value)
    text = f"Highest mean of {study.role_of(metric)}, selected among {len(measured)} arms and so too high on average: "
    text += f"{arm_name(best)} with {interval(best.metric(metric))}"
    if best is not ours:
        text += f"; the highest of AIG's {len(guided)} is {arm_name(ours)} with {interval(ours.metric(metric))}"
    for arm in measured:
        if arm.family in ("base", "tuned") and arm is not best:
            text += f"; {arm.label} has {interval(arm.metric(metric))}"
    return Sentence(f"{text}.")


def arm_name(arm: Arm) -> str:
    """An arm's label, with its family unless the label says it."""
    family = family_name(arm.family)
    return arm.label if family.split()[0].lower() in arm.label.lower() else f"{arm.label} ({family})"


def study_sentences(study: Study) -> list[Sentence]:
    """All that is said about a study, most important first."""
    sentences = [broken_sentence(arm) for arm in study.arms if arm.broken]
    sentences += [warning_sentence(arm) for arm in study.arms if arm.warning]
    sentences += [claim_sentence(claim, study.scope) for claim in study.claims]
    for metric in study.planes:
        said = verdict(study, metric)
        if not said and metric == study.reward:
            said = [Sentence("AIG was not compared with another family.", "open", "not measured")]
        sentences += said
    for metric in dict.fromkeys((study.held_out, "gold")):
        if metric and metric != study.reward and (said_best := best_arms(study, metric)):
            sentences.append(said_best)
    return sentences


def headline(study: Study, metric: str | None = None) -> str:
    """What AIG on KL 0, and on every training, beats, does not clearly beat and loses to, on a metric's plane (the
    proxy's by default)."""
    said = [_outcome(study, metric or study.reward, ours) for ours in OURS]
    return "; ".join(filter(None, said)) or "AIG was not compared with another family"


def _outcome(study: Study, metric: str, ours: str) -> str:
    """Of one of AIG's families; empty where it was not compared."""
    outcomes: dict[str, list[str]] = {AHEAD: [], UNDECIDED: [], BEHIND: []}
    alone: list[str] = []
    for found in comparisons(study.planes[metric].differences, [ours]):
        if found.verdict:
            outcomes[found.verdict].append(study.family(found.b))
        elif math.isfinite(found.estimate.value):
            alone.append(f"{interval(found.estimate, plus=True)} against {study.family(found.b)}")
    parts = []
    if outcomes[AHEAD]:
        parts.append(f"beats {_list(outcomes[AHEAD], 'and')}")
    if outcomes[UNDECIDED]:
        parts.append(f"does not clearly beat {_list(outcomes[UNDECIDED], 'or')}")
    if outcomes[BEHIND]:
        parts.append(f"loses to {_list(outcomes[BEHIND], 'and')}")
    if parts:
        return f"{study.counted(ours)} {_list(parts, 'and')}{f' {study.scope}' if study.scope else ''}"
    if alone:
        return f"{study.counted(ours)} has {_list(alone, 'and')} in hypervolume, without a verdict"
    return ""


def headline_elsewhere(study: Study) -> list[str]:
    """The same for the planes of rewards that were not trained on."""
    others = [metric for metric in study.planes if metric != study.reward]
    return [f"With {study.role_of(metric)} {place([study])}, {headline(study, metric)}" for metric in others]


def summary(studies: Sequence[Study], role: str = "proxy") -> str:
    """In how many studies AIG clearly beats each other family by a reward, and in how many it clearly loses to it."""
    said = [_tally(studies, role, ours) for ours in OURS]
    return ". ".join(filter(None, said)) or "AIG was not compared with another family"


def _tally(studies: Sequence[Study], role: str, ours: str) -> str:
    """Of one of AIG's families; empty where it was not compared."""
    names, verdicts = set(), dict[str, list[str]]()
    for study in studies:
        metric = study.metric_of(role)
        for found in comparisons(study.planes[metric].differences, [ours]) if metric else ():
            if found.verdict:
                names.add(study.family(ours))
                verdicts.setdefault(study.family(found.b), []).append(found.verdict)
    if not verdicts:
        return ""
    beats = _list([f"{name} in {found.count(AHEAD)} of {len(found)}" for name, found in verdicts.items()], "and")
    loses = _list([f"{name} in {found.count(BEHIND)}" for name, found in verdicts.items()], "and")
    most = max(len(study.train_seeds) for study in studies)
    few = "" if most >= LEAST_SEEDS else f" ({'two adapters' if most == 2 else 'one adapter'} in each setting)"
    return f"{max(names, key=len)} clearly beats {beats} settings; it clearly loses to {loses}{few}"


def summaries_elsewhere(studies: Sequence[Study]) -> list[str]:
    """The same for rewards that were not trained on."""
    roles = [role for role in ROLES[1:] if any(study.metric_of(role) for study in studies)]
    return [f"With {role} {place(studies)}, {summary(studies, role)}" for role in roles]


def place(studies: Sequence[Study]) -> str:
    """Where another reward stands; without training there is no proxy whose place it could take."""
    return "in the proxy's place" if any(study.train_seeds for study in studies) else "on the axis of rewards"


def tuning_headline(study: Study) -> str:
    """One sentence on tuning: which claims hold and which do not."""
    said = [(claim, claim_sentence(claim)) for claim in study.claims]

    def short(sentence: Sentence) -> str:
        text = re.sub(r"\s*\([^)]*\)", "", sentence.text.split(":")[0])
        return text[0].lower() + text[1:]

    holds = [short(sentence) for _, sentence in said if sentence.kind == "yes"]
    fails = [short(sentence) for _, sentence in said if sentence.kind != "yes"]
    text = _list(holds, "and")
    if fails:
        text = f"{text}, but {_list(fails, 'and')}" if text else _list(fails, "and")
    text += f" {study.scope}" if text and study.scope else ""
    return text[:1].upper() + text[1:]


_EVERY_WEIGHT = (
    "AIG on every KL weight has the schedules on the adapter of each KL weight, 0 included, as the published protocol "
    "sweeps them, and pays for all of these trainings. The KL-tuned models themselves are not in it but are its rival: "
    "a family that contains another cannot fall behind it."
)


def caveats(run: Run) -> list[str]:
    """What the intervals cover and what they do not."""
    seeds = sorted({seed for study in run.studies for seed in study.train_seeds})
    most = max(len(study.train_seeds) for study in run.studies)
    training = "how another training of such an adapter would differ is not known here."
    if seeds:
        training = f"there is one training seed ({seeds[0]}), so another training run may differ by more."
    if most > 1:
        training = f"of {most} training seeds a claim or difference is the mean, each seed's own beside it, and holds "
        training += "for other trainings too: its interval has both levels, seeds and then prompts."
        if most < LEAST_SEEDS:
            training = f"with {most} training seeds claims and differences are of these adapters alone."
    adjusted = [
        f"A family is ahead or behind only where that holds together with all {run.comparisons} comparisons of this "
        f"report at {run.percent} (Holm's adjustment over every pair of families on every plane of every setting; one "
        "training seed of several is no setting). An interval alone is not adjusted, and claims on tuning are not."
    ] * bool(run.comparisons)
    whole = [f"{run.no_interval[:1].upper()}{run.no_interval[1:]}, and no verdict."] if run.no_interval else []
    return [
        *whole,
        *filter(None, [run.prompts_told]),
        f"Intervals are {run.percent}, from a bootstrap over prompts ({run.n_bootstrap} resamples, seed {run.seed}), "
        "paired over arms: all arms share prompts and noise. They say how results vary with the prompts, not with the "
        "training: " + training,
        "Measures of whole sets of images (distances, precision, recall, density, coverage) have their intervals from "
        "subsets of the prompts instead, since a bootstrap would hold images twice, and those are each other's nearest "
        "neighbours. Arms share the base's noise: their distances to it start under those of independent images (a KID "
        "under zero), and compare with one another, not with those of other studies.",
        "AIG's schedules are those of its published sweep, ImageReFL's combined generation (step:f) among them; one "
        "weight at every step is DeRaDiff's fixed mix, a family of its own.",
        *(_EVERY_WEIGHT for _ in range(any(arm.family == "kl-aig" for arm in run.arms))),
        "A hypervolume gains from every further arm of its family by chance alone. So families are compared at equal "
        "size: of the larger one the mean over all its sub-families of the smaller one's size, base and tuned in each.",
        *adjusted,
        *(f"{label}: the training was {told}." for label, told in run.stopped.items()),
    ]


def _list(items: Sequence[str], last: str) -> str:
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""
