import copy

import pytest
import torch

from models.networks import (
    DenseLayer,
    DenseNet22,
    MobileNetV2,
    Network,
    ResNet20,
    Transition,
    Vgg16,
    densenet22,
    mobilenetv2,
    resnet20,
    vgg16,
    vgg16_widths,
)
from models.prune import (
    RESNET20_RECIPES,
    VGG16_RECIPES,
    ResNetRecipe,
    filter_norms,
    prune,
    prune_densenet22,
    prune_mobilenetv2,
    prune_resnet20,
    prune_vgg16,
    recipes,
    strongest,
)


def parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_of_the_reference_networks() -> None:
    assert parameters(vgg16(vgg16_widths(2))) == 3_684_266
    assert parameters(resnet20()) == 272_186
    assert parameters(densenet22()) == 270_418
    assert parameters(mobilenetv2()) == 138_138


@pytest.mark.parametrize(
    "bad",
    [
        lambda: vgg16((8,) * 12),
        lambda: resnet20(inner=(8,) * 8),
        lambda: densenet22((8,) * 17),
        lambda: densenet22(transitions=(8,)),
        lambda: mobilenetv2((8,) * 6),
    ],
)
def test_a_wrong_number_of_widths_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match=r"not (3 and 8|12|17 and 2|18 and 1|6)\."):
        bad()


def test_widths_of_the_vgg_students() -> None:
    teacher = vgg16(vgg16_widths(2)).eval()
    widths = {recipe: prune(teacher, recipe).widths for recipe in VGG16_RECIPES}
    assert widths["A"] == (16, 32, 64, 64, 128, 128, 128, *(128,) * 6)
    assert widths["D"] == vgg16_widths(4)
    # 60 % of 32 is 19.2, of which 19 go.
    assert widths["C"] == (13, 16, 32, 32, 64, 64, 64, *(64,) * 6)


def test_widths_of_the_resnet_students() -> None:
    teacher = resnet20().eval()
    students = {recipe: prune(teacher, recipe) for recipe in RESNET20_RECIPES}
    halved = (8,) * 3 + (16,) * 3 + (32,) * 3
    assert (students["inner50"].stream, students["inner50"].inner) == ((16, 32, 64), halved)
    assert students["inner75"].stream == (16, 32, 64)
    assert students["inner75"].inner == (4,) * 3 + (8,) * 3 + (16,) * 3
    assert (students["stream50"].stream, students["stream50"].inner) == ((8, 16, 32), halved)


def test_widths_of_the_other_students() -> None:
    dense = prune(densenet22().eval(), "growth50")
    assert isinstance(dense, DenseNet22)
    assert dense.growth == (6,) * 18
    # Of 16 + 6 x 12 = 88 channels 44 stay, and of 88 + 72 = 160 there 80.
    state = dense.state_dict()
    assert [len(state[f"transitions.{number}.conv.weight"]) for number in (0, 1)] == [44, 80]
    mobile = prune(mobilenetv2().eval(), "expansion50")
    assert isinstance(mobile, MobileNetV2)
    assert mobile.inner == (48, 48, 72, 72, 96, 96, 192)


def test_every_recipe_makes_a_smaller_student(network: Network) -> None:
    for recipe in recipes(network):
        assert parameters(prune(network, recipe)) < parameters(network)


def remove(network: Network, percent: int) -> Network:
    match network:
        case Vgg16():
            return prune_vgg16(network, (percent,) * 13)
        case ResNet20():
            return prune_resnet20(network, ResNetRecipe(percent, percent))
        case DenseNet22():
            return prune_densenet22(network, percent)
        case MobileNetV2():
            return prune_mobilenetv2(network, percent)


def test_removing_nothing_changes_nothing(network: Network) -> None:
    same = remove(network, 0)
    expected = network.state_dict()
    found = same.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_student_computes_what_its_teacher_does_without_the_channels(network: Network) -> None:
    """Silence, in a copy of the teacher, what the student lacks: the logits must be the same."""
    student = remove(network, 50)
    wide = copy.deepcopy(network)
    image = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = student(image)
        for parameters, kept in silenced(wide):
            gone = torch.ones(len(parameters[0]), dtype=torch.bool)
            gone[kept] = False
            for parameter in parameters:
                parameter[gone] = 0
        torch.testing.assert_close(found, wide(image), rtol=0, atol=1e-5)


Silenced = list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]


def silenced(network: Network) -> Silenced:
    """Pair what gives channels with the channels that stay, found anew from the definition."""
    if isinstance(network, DenseNet22):
        return silenced_densenet(network)
    state = dict(network.named_modules())
    norms = {}
    for name, bn in state.items():
        if isinstance(bn, torch.nn.BatchNorm2d):
            conv = state[name.replace("bn", "conv")]
            assert bn.running_var is not None
            gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
            norms[name] = (conv.weight * gain[:, None, None, None]).abs().sum((1, 2, 3))
    if isinstance(network, MobileNetV2):
        norms = {name: norm for name, norm in norms.items() if name.endswith("bn1")}
        norms |= {name.replace("bn1", "bn2"): norm for name, norm in norms.items()}
    if isinstance(network, ResNet20):
        for stage, entry in enumerate(
            ("stem.bn", "stages.1.0.shortcut.bn", "stages.2.0.shortcut.bn")
        ):
            writers = [entry, *(f"stages.{stage}.{block}.bn2" for block in range(3))]
            total = torch.stack([norms[writer] for writer in writers]).sum(0)
            norms.update(dict.fromkeys(writers, total))
    return [
        ((state[name].weight, state[name].bias), n.topk(len(n) - len(n) // 2).indices)
        for name, n in norms.items()
    ]


def silenced_densenet(network: DenseNet22) -> Silenced:
    """A channel of a dense block is silent when no normalisation lets it through."""
    found: Silenced = []

    def hide(bns: list[torch.nn.BatchNorm2d], conv: torch.nn.Conv2d, start: int) -> None:
        norms = conv.weight.abs().sum((1, 2, 3))
        gone = norms.topk(len(norms) // 2, largest=False).indices + start
        for bn in bns:
            stay = torch.ones(bn.num_features, dtype=torch.bool)
            stay[gone] = False
            found.append(((bn.weight, bn.bias), stay.nonzero()[:, 0]))

    layers = [module for module in network.modules() if isinstance(module, DenseLayer)]
    junctions = [module for module in network.modules() if isinstance(module, Transition)]
    for number in range(3):
        stage = layers[number * 6 : number * 6 + 6]
        readers = [*(layer.bn for layer in stage), [*(j.bn for j in junctions), network.bn][number]]
        if number > 0:
            hide(readers, junctions[number - 1].conv, 0)
        for position, layer in enumerate(stage):
            hide(readers[position + 1 :], layer.conv, layer.conv.in_channels)
    return found


def test_every_parameter_is_a_slice_of_the_teachers(network: Network) -> None:
    student = remove(network, 50).state_dict()
    for name, wide in network.state_dict().items():
        narrow = student[name]
        assert narrow.dtype == wide.dtype
        if wide.ndim:
            assert torch.isin(narrow, wide).all()


def test_norms_are_those_of_the_folded_filters() -> None:
    conv = torch.nn.Conv2d(2, 3, 1, bias=False)
    bn = torch.nn.BatchNorm2d(3, eps=0)
    assert bn.running_var is not None
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, -1], [3, 3], [-2, 0]])[:, :, None, None])
        bn.weight.copy_(torch.tensor([2.0, -1, 3]))
        bn.running_var.copy_(torch.tensor([1.0, 4, 0.25]))
    norms = filter_norms(conv, bn)
    assert norms.tolist() == [4, 3, 12]
    assert strongest(norms, 34).tolist() == [0, 2]


def test_strongest_rounds_down_and_keeps_the_order() -> None:
    norms = torch.tensor([5.0, 1, 4, 2, 3])
    assert strongest(norms, 0).tolist() == [0, 1, 2, 3, 4]
    assert strongest(norms, 39).tolist() == [0, 2, 3, 4]
    assert strongest(norms, 40).tolist() == [0, 2, 4]
    assert strongest(norms, 99).tolist() == [0]
    assert strongest(torch.ones(4), 50).tolist() == [0, 1]
    with pytest.raises(ValueError, match="100"):
        strongest(norms, 100)
