import json
import re
from dataclasses import MISSING, dataclass, field, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from mask_rcnn_jax.config import checked, differences, from_json, override, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.augmented import AugmentationConfig
from mask_rcnn_jax.inference.tiling import TilingConfig
from mask_rcnn_jax.models import BoxHeadConfig, MaskRCNNConfig, PoolerConfig, RoIPoolConfig, torchvision
from mask_rcnn_jax.ranges import AddedLater, Items, NotNegative, Positive, Range, annotations, check, may_be_missing
from mask_rcnn_jax.training import ExperimentConfig


@dataclass(frozen=True)
class Plain:
    depth: int = 18
    frozen: bool = True


@dataclass(frozen=True)
class Wide:
    width: int = 64


@dataclass(frozen=True)
class Needy:
    root: str


@dataclass(frozen=True)
class Solver:
    learning_rate: float = 0.02
    steps: tuple[int, ...] = (60_000, 80_000)
    kind: Literal["sgd", "adamw"] = "sgd"
    level: Literal[0, 1] = 1
    clip: float | None = None
    weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError("learning_rate must not be negative")


@dataclass(frozen=True)
class Experiment:
    name: str = "a"
    backbone: Plain | Wide | Needy = Plain()
    mask_head: Wide | None = Wide(256)
    solver: Solver = field(default_factory=Solver)
    sizes: tuple[tuple[int, ...], ...] = ((32,), (64, 128))
    start: str | None = None
    splits: tuple[str, str] = ("train", "val")
    mixed: int | tuple[int, int] | str = 1
    pairs: tuple[tuple[str, str], ...] = ()


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("name=b=c", "b=c"),
        ("name=12", "12"),
        ("name='none'", "none"),
        ("start=none", None),
        ("start='none'", "none"),
        ("start=weights/a.npz", "weights/a.npz"),
        ("backbone.depth=50", 50),
        ("backbone.depth = 50 ", 50),
        ("backbone.frozen=False", False),
        ("backbone=Wide", Wide()),
        ("backbone=Plain", Plain()),
        ("mask_head=none", None),
        ("solver.learning_rate=1e-3", 1e-3),
        ("solver.learning_rate=1", 1.0),
        ("solver.clip=35", 35.0),
        ("solver.clip=none", None),
        ("solver.kind=adamw", "adamw"),
        ("solver.level=0", 0),
        ("solver.steps=10,20,30", (10, 20, 30)),
        ("solver.steps=(10, 20,)", (10, 20)),
        ("solver.steps=[10]", (10,)),
        ("solver.steps=7", (7,)),
        ("solver.steps=()", ()),
        ("solver.weights=10,5", (10.0, 5.0)),
        ("sizes=((8,),(16,32))", ((8,), (16, 32))),
        ("sizes=(8,16),(32)", ((8, 16), (32,))),
        ("splits=a,'b'", ("a", "b")),
        ("mixed=3", 3),
        ("mixed=3,4", (3, 4)),
        ("mixed=three", "three"),
        ("pairs=(a,b),(c,d)", (("a", "b"), ("c", "d"))),
        ("pairs=(a,b)", (("a", "b"),)),
        ("pairs=((a,b))", (("a", "b"),)),
        ("pairs=", ()),
    ],
)
def test_override_reads_a_value_as_its_annotation_says(assignment: str, expected: object) -> None:
    key = assignment.partition("=")[0].strip()
    value = at(override(Experiment(), [assignment]), key)
    assert value == expected
    assert type(value) is type(expected)


def test_override_applies_in_order_and_reaches_into_a_switched_class() -> None:
    config = override(Experiment(), ["backbone=Wide", "backbone.width=8", "backbone=Wide", "name=x", "name=y"])
    assert config == Experiment(name="y", backbone=Wide(8))


def test_override_leaves_its_argument_alone() -> None:
    config = Experiment()
    assert override(config, []) is config
    override(config, ["solver.learning_rate=5", "mask_head.width=3"])
    assert config == Experiment()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("name", ["'name'", "key=value"]),
        ("solver.learning_rat=1", ["solver.learning_rat;", "did you mean solver.learning_rate?"]),
        ("learning_rate=1", ["learning_rate;", "did you mean solver.learning_rate?"]),
        ("sovler.learning_rate=1", ["sovler.learning_rate;", "did you mean solver.learning_rate?"]),
        ("backbone.zzz=1", ["backbone.zzz", "backbone.depth, backbone.frozen"]),
        ("backbone.width=1", ["backbone.width", "mask_head.width"]),  # Plain has none
        ("backbone.type=Wide", ["backbone.type"]),
        ("name.x=1", ["name.x", "name is 'a'"]),
        ("backbone.depth=deep", ["backbone.depth=deep", "expected int"]),
        ("backbone.depth=1.5", ["backbone.depth=1.5", "expected int"]),
        ("backbone.depth=true", ["backbone.depth=true", "expected int"]),
        ("backbone.frozen=1", ["backbone.frozen=1", "expected bool"]),
        ("backbone=Plane", ["backbone=Plane", "expected Plain or Wide or Needy"]),
        ("backbone=Needy", ["Needy", "root", "config file"]),
        ("solver=none", ["solver=none", "expected Solver"]),
        ("solver.clip=high", ["solver.clip=high", "expected float or none"]),
        ("solver.kind=adam", ["solver.kind=adam", "expected one of sgd, adamw"]),
        ("solver.steps=1,b", ["solver.steps=1,b", "expected tuple[int, ...]"]),
        ("solver.weights=1,2,3", ["solver.weights=1,2,3", "expected tuple[float, float]"]),
        ("solver.steps=(1,2", ["solver.steps=(1,2"]),
        ("solver.learning_rate=-1", ["solver", "must not be negative"]),
    ],
)
def test_override_names_what_is_wrong(assignment: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        override(Experiment(), [assignment])
    for word in words:
        assert word in str(caught.value)


def test_override_of_a_missing_part_names_the_part() -> None:
    with pytest.raises(UserError, match=r"mask_head is None, expected Wide or none"):
        override(Experiment(mask_head=None), ["mask_head.width=3"])


@pytest.mark.parametrize(
    "config",
    [
        Experiment(),
        Experiment(backbone=Wide(3), mask_head=None, sizes=(), mixed=(1, 2), start="none"),
        Experiment(backbone=Needy("a b"), solver=Solver(learning_rate=1 / 3, steps=(), clip=1e-8)),
    ],
)
def test_json_round_trip_is_the_identity(config: Experiment) -> None:
    loaded = from_json(Experiment, json.loads(json.dumps(to_json(config))))
    assert loaded == config
    assert hash(loaded) == hash(config)
    assert differences(config, loaded) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nam": "b"}, ["no key nam", "did you mean name?"]),
        ({"name": 3}, ["name: expected str", "3"]),
        ({"backbone": {"type": "Plain", "depth": "x", "frozen": True}}, ["backbone.depth: expected int", "'x'"]),
        ({"backbone": {"type": "Plain", "depth": 1}}, ["backbone.frozen is missing"]),
        ({"backbone": {"type": "Huge"}}, ["backbone.type", "Plain or Wide or Needy", "'Huge'"]),
        ({"backbone": {"depth": 1}}, ["backbone.type", "None"]),
        ({"backbone": 5}, ["backbone: expected Plain or Wide or Needy"]),
        ({"start": {"type": "Plain"}}, ["start"]),
        ({"sizes": [[1], ["a"]]}, ["sizes[1][0]: expected int"]),
        ({"splits": ["train"]}, ["splits: expected tuple[str, str]"]),
    ],
)
def test_from_json_names_the_key(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        from_json(Experiment, to_json(Experiment()) | change)
    for word in words:
        assert word in str(caught.value)


def test_from_json_wants_every_key_and_a_table() -> None:
    tree = to_json(Experiment())
    del tree["name"]
    with pytest.raises(UserError, match="name is missing"):
        from_json(Experiment, tree)
    with pytest.raises(UserError, match="config: expected Experiment"):
        from_json(Experiment, [1])


def test_differences_are_one_line_a_key() -> None:
    config = Experiment()
    other = replace(config, backbone=Wide(), solver=replace(config.solver, learning_rate=0.1, steps=(1,)))
    assert differences(config, other) == [
        "backbone: Plain != Wide",
        "solver.learning_rate: 0.02 != 0.1",
        "solver.steps: [60000, 80000] != [1]",
    ]


@dataclass(frozen=True)
class Bounded:
    count: Positive = 1
    rate: Annotated[float, Range(0, 1, below_high=True)] = 0.5
    width: Annotated[float, Range(0, 8, above_low=True)] = 1.0
    canvas: tuple[Annotated[int, Range(32, 320, multiple_of=32)], int] | None = (32, 64)
    sizes: Annotated[tuple[tuple[Positive, ...], ...], Items(1)] = ((1,),)
    spare: Annotated[NotNegative | None, AddedLater()] = None


@dataclass(frozen=True)
class Whole:
    part: Bounded = Bounded()
    other: Bounded | None = None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 0, "must be at least 1, not 0"),
        ("count", 2**31, "must be at least 1 and at most 2147483647, not 2147483648"),
        ("count", 10**400, "must be at least 1 and at most 2147483647, not an integer of 1329 bits"),
        ("rate", 1.0, "must be at least 0 and below 1, not 1.0"),
        ("rate", float("nan"), "must be at least 0 and below 1, not nan"),
        ("width", 0.0, "must be above 0 and at most 8, not 0.0"),
        ("width", float("inf"), "must be above 0 and at most 8, not inf"),
        ("canvas[0]", (48, 1), "must be a multiple of 32, at least 32 and at most 320, not 48"),
        ("sizes", (), "must have at least 1 item, not 0"),
        ("sizes[1][0]", ((1,), (0,)), "must be at least 1, not 0"),
        ("spare", -1, "must be at least 0, not -1"),
    ],
)
def test_a_number_out_of_range_is_refused_wherever_it_comes_from(key: str, value: Any, message: str) -> None:
    config = Whole(part=Bounded(**{key.partition("[")[0]: value}))
    sources = [
        lambda: check(config),
        lambda: checked(config),
        lambda: from_json(Whole, to_json(config)),
        lambda: override(Whole(), ["other=Bounded", f"other.{key.partition('[')[0]}={value}"]),
    ]
    for source in sources[: 3 if value == 10**400 else 4]:
        with pytest.raises(UserError) as caught:
            source()
        assert str(caught.value).removeprefix("other.").removeprefix("part.") == f"{key} {message}"


def test_values_in_range_pass() -> None:
    config = Whole(Bounded(2**31 - 1, 0.0, 8.0, (320, 5), ((1, 2), ()), 0), Bounded(canvas=None))
    check(config)
    assert checked(config) == config


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(UserError, match=r"^part.rate: expected float, not an integer of 1329 bits$"):
        from_json(Whole, {"type": "Whole", "part": to_json(Bounded()) | {"rate": 10**400}, "other": None})


def test_text_that_can_name_no_file_is_refused() -> None:
    """Calls of the system raise a plain ValueError for it, wherever a setting names a file."""
    tree = to_json(ExperimentConfig())
    for change in (
        {"pretrained": "a\0b"},
        {"data": tree["data"] | {"source": tree["data"]["source"] | {"root": "\0"}}},
    ):
        with pytest.raises(
            UserError, match=r"^(pretrained|data\.source\.root): '.*' holds the character NUL; remove it$"
        ):
            from_json(ExperimentConfig, tree | change)


def test_messages_stay_short_whatever_a_file_holds() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    for change in ({"part": {"type": "x" * 10**6}}, {"part": deep}, {"part": "x" * 10**6}, {"x" * 10**6: 1}):
        with pytest.raises(UserError) as caught:
            from_json(Whole, to_json(Whole()) | change)
        assert len(str(caught.value)) < 400


def test_what_was_made_in_python_is_of_the_types_it_promises() -> None:
    lists: Any = {"canvas": [32, 64], "sizes": [[1]]}
    made: Any = Bounded(rate=0, **lists)
    assert hash(checked(made)) == hash(Bounded(rate=0.0))
    wrong: Any = replace(Bounded(), **{"count": 1.0})
    with pytest.raises(UserError, match=r"count: expected int, not 1\.0"):
        checked(wrong)


def test_a_setting_that_was_added_later_may_be_missing() -> None:
    tree = to_json(Bounded(count=3, spare=4))
    del tree["spare"]
    assert from_json(Bounded, tree) == Bounded(count=3)
    del tree["count"]
    with pytest.raises(UserError, match=r"^count is missing$"):
        from_json(Bounded, tree)


def config_classes(cls: Any = ExperimentConfig) -> set[Any]:
    """A configuration's class, and those of all that it may hold."""
    found, ahead = set(), [cls]
    while ahead:
        cls = ahead.pop()
        if cls not in found:
            found.add(cls)
            held = [part for annotation in annotations(cls).values() for part in parts(annotation)]
            held = [part for part in held if isinstance(part, type) and is_dataclass(part)]
            ahead += [*held, *(derived for part in held for derived in part.__subclasses__())]
    return found


def parts(annotation: Any) -> list[Any]:
    """An annotation and all that it is made of."""
    return [annotation, *(part for argument in get_args(annotation) for part in parts(argument))]


def has_bare_number(annotation: Any) -> bool:
    """Tell whether an annotation takes numbers without a range."""
    if get_origin(annotation) is Annotated and any(isinstance(mark, Range) for mark in annotation.__metadata__):
        return False
    return annotation in (int, float) or any(has_bare_number(argument) for argument in get_args(annotation))


@pytest.mark.parametrize("cls", sorted({*config_classes(), TilingConfig, AugmentationConfig}, key=lambda c: c.__name__))
def test_every_number_of_a_configuration_has_a_range(cls: Any) -> None:
    assert [name for name, annotation in annotations(cls).items() if has_bare_number(annotation)] == []
    for name, default in may_be_missing(cls).items():
        assert default is not MISSING, f"{name} may be missing, so it needs a default"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.canvas=100,100", "data.canvas[0] must be a multiple of 32, at least 32 and at most 32768, not 100"),
        ("data.canvas=0,64", "data.canvas[0] must be a multiple of 32, at least 32 and at most 32768, not 0"),
        (
            "data.canvas_eval=64,33",
            "data.canvas_eval[1] must be a multiple of 32, at least 32 and at most 32768, not 33",
        ),
        ("data.canvas=64,32", "data: canvas (64, 32) is portrait; give (height, width) of the landscape canvas"),
        ("data.num_workers=-1", "data.num_workers must be at least 0 and at most 1024, not -1"),
        ("data.max_instances=0", "data.max_instances must be at least 1 and at most 100000, not 0"),
        ("data.mask_crop=0", "data.mask_crop must be at least 1 and at most 1024, not 0"),
        ("data.short_side=", "data.short_side must have at least 1 item, not 0"),
        ("data.flip=1.5", "data.flip must be at least 0 and at most 1, not 1.5"),
        ("data.flip=nan", "data.flip must be at least 0 and at most 1, not nan"),
        ("seed=-1", "seed must be at least 0 and at most 4294967295, not -1"),
        (
            "schedule.learning_rate=1e30",
            "schedule.learning_rate must be at least 0 and at most 1000000000, not 1e+30",
        ),
        ("optimizer.clip_norm=0", "optimizer.clip_norm must be above 0, not 0.0"),
        ("evaluation.max_detections=10,1", "evaluation: max_detections must be ascending, not (10, 1)"),
        ("model.box_head.samples=0", "model.box_head.samples must be at least 1, not 0"),
        (
            "model.rpn.sizes=((32),(64))",
            "model.rpn: sizes must be one tuple for each of 5 features, not ((32.0,), (64.0,))",
        ),
        ("model.rpn.ratios=0,1", "model.rpn.ratios[0] must be above 0, not 0.0"),
        ("model.rpn.background_iou=0.9", "model.rpn: background_iou 0.9 must not be above foreground_iou 0.7"),
        (
            "model.mask_head.pooler.features=p2,p7",
            "model: mask_head.pooler.features has p7, but the backbone makes p2, p3, p4, p5, p6",
        ),
        ("model.box_head.norm.groups=0", "model.box_head.norm.groups must be at least 1 and at most 65536, not 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_key_and_range(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(ExperimentConfig(), [assignment])
    assert str(caught.value) == message


def test_settings_that_depend_on_others_are_refused() -> None:
    grouped = ["model.mask_head.norm.kind=group_norm", "model.mask_head.norm.groups=7"]
    for assignments, message in [
        (grouped, "model.mask_head: channels 256 must be a multiple of norm.groups 7"),
        (["model.box_head.samples=3"], "samples 3 x foreground_fraction 0.25 leave no room for foreground"),
        (["model.backbone.bottom_up.groups=3"], "width 64 must be a multiple of groups 3"),
        (["steps=1000000000"], "steps 1000000000 x batch_size 16 must be at most 2147483647"),
        (
            ["model.backbone=ResNetConfig", "model.rpn.features=res4,res5", "model.rpn.sizes=(32),(64)"],
            "model: rpn.features res4, res5 differ in channels; one head takes one number",
        ),
        (["data.source.image_size=32"], "max_shape_size 80 must be at most 1.25 x image_size 32"),
        (["data.source.min_shape_size=99"], "min_shape_size 99 must not be above max_shape_size 80"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            override(ExperimentConfig(), assignments)


def test_a_pooler_of_any_kind_may_stand_in_a_head() -> None:
    tree = to_json(BoxHeadConfig())
    tree["pooler"] = {  # as checkpoints have it from when there was one kind
        "type": "PoolerConfig",
        "output_size": 14,
        "sampling_ratio": 2,
        "aligned": False,
        "reduction": "average",
        "features": ["res4"],
        "canonical_size": 224.0,
        "canonical_level": 4,
        "level_convention": "detectron2",
    }
    pooler = PoolerConfig(output_size=14, sampling_ratio=2, aligned=False, features=("res4",))
    assert from_json(BoxHeadConfig, tree).pooler == pooler
    config = override(MaskRCNNConfig(), ["box_head.pooler=RoIPoolConfig", "box_head.pooler.features=p2,p3"])
    assert config.box_head.pooler == RoIPoolConfig(features=("p2", "p3"))
    assert from_json(MaskRCNNConfig, to_json(config)) == config
    with pytest.raises(UserError, match=r"no key box_head\.pooler\.aligned"):
        override(config, ["box_head.pooler.aligned=false"])


def test_only_roi_align_has_settings_that_torchvision_has_otherwise() -> None:
    config = torchvision(override(MaskRCNNConfig(), ["box_head.pooler=RoIPoolConfig"]))
    assert config.box_head.pooler == RoIPoolConfig(level_convention="torchvision")
    aligned = PoolerConfig(output_size=14, sampling_ratio=2, aligned=False, level_convention="torchvision")
    assert config.mask_head is not None
    assert config.mask_head.pooler == aligned
