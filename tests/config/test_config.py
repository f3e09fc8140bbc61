"""The configuration: where values come from, and what is said about wrong ones."""

import dataclasses

import pytest
import yaml

from pipelines import config as configuration
from pipelines.config import ConfigError
from pipelines.runs import identity
from pipelines.study import trainings


def test_a_file_goes_over_the_preset_and_an_override_over_both(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 7, lr: 1e-2}\nrun: {name: from-file}\n")
    loaded = configuration.load("demo", file, ["train.steps=9"])
    assert loaded.train.steps == 9
    assert (loaded.train.lr, loaded.run.name) == (0.01, "from-file")
    assert loaded.train.snapshot_every == configuration.load("demo").train.snapshot_every


@pytest.mark.parametrize("name", configuration.presets())
def test_every_preset_loads_and_survives_the_way_through_yaml(name):
    loaded = configuration.load(name)
    assert configuration.from_dict(yaml.safe_load(configuration.to_yaml(loaded))) == loaded


def test_numbers_and_lists_are_read_as_yaml():
    loaded = configuration.load(
        None, None, ["train.lr=3e-4", "sweep.kl_weights=[0, 5]", "evaluate.early_stops=[]", "ray.address=null"]
    )
    assert loaded.train.lr == 3e-4
    assert loaded.sweep.kl_weights == (0.0, 5.0)
    assert loaded.evaluate.early_stops == ()
    assert loaded.ray.address is None


def test_a_feature_extractor_is_named_or_described_by_a_mapping(tmp_path):
    loaded = configuration.load(None, None, ["evaluate.features={name: dinov2, weights: /data/dinov2}"])
    assert loaded.evaluate.features == {"name": "dinov2", "weights": "/data/dinov2"}
    assert configuration.from_dict(yaml.safe_load(configuration.to_yaml(loaded))) == loaded
    hash(loaded.evaluate)
    with pytest.raises(ConfigError, match=r"evaluate\.features is 3: give a text or a mapping, as in \{name: \.\.\.\}"):
        configuration.load(None, None, ["evaluate.features=3"])


def test_what_selects_and_what_judges_have_no_noise_in_common_whatever_the_number_of_seeds():
    def most(section: type, key: str) -> int:
        return next(item.metadata["high"] for item in dataclasses.fields(section) if item.name == key)

    evaluated, validated = most(configuration.Evaluate, "seeds"), most(configuration.Train, "validate_seeds")
    assert evaluated <= configuration.VALIDATION_SEEDS
    assert configuration.VALIDATION_SEEDS + validated <= configuration.SEARCH_SEEDS
    for key in ("seeds", "held_out_seeds"):  # seed indices are 32-bit integers in the images' files
        assert configuration.SEARCH_SEEDS + most(configuration.Search, key) < 2**31
    with pytest.raises(ConfigError, match=r"evaluate\.seeds is 1000001: give a number at least 2"):
        configuration.load(None, None, ["evaluate.seeds=1000001"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("trian.steps=3", "did you mean 'train'?"),
        ("train.kl_weights=[0]", "did you mean 'train.kl_weight'?"),
        ("steps=3", "write section.key=value"),
        ("train.steps", "write section.key=value"),
        ("train.steps=0", "train.steps is 0: give a number at least 1"),
        ("train.lr=0", "train.lr is 0.0: give a number above 0"),
        ("train.lr=.nan", "train.lr is nan"),
        ("front.level=2", "at least 0.5 and at most 0.999"),
        ("train.steps=2.5", "train.steps is 2.5: give a whole number"),
        ("train.steps=true", "train.steps is True: give a whole number"),
        ("train.lr=fast", "train.lr is 'fast': give a number"),
        ("train.kl=huber", "train.kl is 'huber': give one of eps_mse, path"),
        ("train.optimizer=sgd", "give one of adamw, adamw-fused, adamw-8bit, adam-l2"),
        ("train.optimizer=adam", "train.optimizer is 'adam', which added the weight decay to the gradient (L2)"),
        ("train.ema=1", "train.ema is 1: give a number below 1, as in 0.9999, or null"),
        ("train.ema=0", "train.ema is 0.0: give a number above 0"),
        ("train.num_workers=[2, 1]", "train.num_workers is [2, 1]: give a number, or [least, most] as in [1, 4]"),
        ("train.num_workers=[1, 2, 3]", "give a number, or [least, most]"),
        ("train.num_workers=[0, 2]", "train.num_workers is 0: give a number at least 1"),
        ("train.num_workers=many", "give a whole number or a list of whole numbers"),
        ("sweep.kl_weights=1", "give a list of numbers"),
        ("sweep.kl_weights=[1, 10]", "include 0"),
        ("sweep.kl_weights=[0, 1, 1]", "give each value once"),
        ("evaluate.lora_scales=[0.5, 65]", "evaluate.lora_scales is 65.0: give a number at least 0 and at most 64"),
        ("evaluate.prompts=[a red star, 3]", "give a whole number or a text or a list of texts"),
        ("run.name=a/b", "give a plain name"),
        ("run.storage=ftp://host", "scheme 'ftp' is unknown: give a folder, or a URI that begins with s3, gs"),
        ("train={steps", "write section.key=value"),
        ("train.steps={", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named_with_its_fix(override, expected):
    with pytest.raises(ConfigError) as error:
        configuration.load(None, None, [override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_are_a_number_or_a_range_and_survive_the_way_through_yaml():
    for text, workers in (("3", (3, 3)), ("[1, 4]", (1, 4))):
        loaded = configuration.load(None, None, [f"train.num_workers={text}"])
        assert loaded.train.workers == workers
        assert configuration.from_dict(yaml.safe_load(configuration.to_yaml(loaded))) == loaded


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'demmo' is unknown; did you mean 'demo'\?.*demo, demo-full"):
        configuration.load("demmo")


@pytest.mark.parametrize("content", ["train: 3", "- 1", "train: {steps: [", "nothing: {a: 1}"])
def test_a_wrong_file_is_named(tmp_path, content):
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"wrong\.yaml"):
        configuration.load(None, file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot read"):
        configuration.load(None, tmp_path / "absent.yaml")


def test_every_key_is_described_with_its_default():
    keys = [
        f"{name}.{item.name}"
        for name, section in configuration.SECTIONS.items()
        for item in dataclasses.fields(section)
    ]
    described = configuration.describe(configuration.Config())
    assert list(described) == keys
    assert described["train.kl"][0] == "eps_mse"


def run_in(folder, *overrides):
    return configuration.load(None, None, [f"run.storage={folder}", *overrides])


def test_the_same_configuration_resumes_a_run_whatever_machine_it_is_carried_out_on(tmp_path):
    path = identity.claim_directory(run_in(tmp_path)).root
    again = run_in(tmp_path, "train.threads=2", "evaluate.generators=1", "ray.num_cpus=8", "train.kl_weight=3")
    assert identity.claim_directory(again).root == path
    assert configuration.from_dict(yaml.safe_load((path / "config.yaml").read_text())) == again


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    path = identity.claim_directory(run_in(tmp_path)).root
    before = (path / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"was made with train\.lr = 0\.001, not 0\.01: choose another run\.name"):
        identity.claim_directory(run_in(tmp_path, "train.lr=0.01"))
    assert (path / "config.yaml").read_text() == before


@pytest.mark.parametrize("kept", ["optimizer: adam", "steps: 100"])
def test_a_run_that_was_made_with_l2_decay_is_refused_also_where_its_file_does_not_say_so(tmp_path, kept):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"train: {{{kept}}}\n")
    for read in (lambda: identity.claim_directory(run_in(tmp_path)), lambda: identity.of_run(tmp_path / "run")):
        with pytest.raises(ConfigError, match=r"train\.optimizer is 'adam', which added the weight decay .*adam-l2"):
            read()


@pytest.mark.parametrize("change", ["train.on_nan=skip", "train.explosion=null", "train.ema=0.9"])
def test_what_decides_which_steps_count_and_what_is_kept_is_a_runs_identity(tmp_path, change):
    identity.claim_directory(run_in(tmp_path))
    with pytest.raises(ConfigError, match=rf"was made with {change.partition('=')[0]} = "):
        identity.claim_directory(run_in(tmp_path, change))


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and holds no config\.yaml of ours: choose another"):
        identity.claim_directory(run_in(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"is a file: choose another"):
        identity.check_directory(run_in(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot write there|cannot read the run directory"):
        identity.check_directory(run_in(tmp_path / "run"))


def test_a_directory_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match=r"cannot write.*choose another run\.storage"):
        identity.claim_directory(run_in("/proc/aig"))


def test_adapters_are_named_after_what_they_were_trained_on():
    loaded = configuration.load(
        None, None, ["train.reward=my.rewards:red", "train.kl_weight=0.5", "train.k=3", "train.seed=2"]
    )
    assert trainings.adapter_key(loaded.train) == "my-rewards-red-k3-kl0-5-s2".replace("0-5", "0.5")
