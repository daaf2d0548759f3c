import pytest

from pb_jax.reports.leaves import kinds_of, layers, rows, shown_layers
from tests.synthetic_run import deep


def test_a_bias_is_of_the_batch_norm_where_its_module_has_a_scale():
    names = ["a.bn.bias", "a.conv.bias", "a.bn.scale", "a.conv.kernel", "table.embedding", "gate"]
    assert kinds_of(names) == ["batch norm", "biases", "batch norm", "kernels", "kernels", "other"]


def test_layers_are_kernels_or_else_all_leaves():
    names = list(deep(2))
    assert [names[i] for i in layers(names)] == [n for n in names if n.endswith("kernel")]
    assert layers(["gate", "shift"]) == [0, 1]


@pytest.mark.parametrize("count", range(1, 30))
def test_shown_layers_are_in_order_and_there(count):
    shown = shown_layers(count)
    assert shown == sorted(set(shown))
    assert len(shown) == min(count, 4)
    assert shown[0] >= 1
    assert shown[-1] <= count
    assert (shown == [3, 7, 10, 13]) == (count >= 13)


def test_rows_of_a_deep_network_are_its_blocks():
    names = list(deep(54))
    found = rows(names, 72)
    assert len(set(found)) == 54 + 3
    assert found[names.index("layer2.1.conv1.kernel")] == "layer2.1"
    assert rows(names, 1000)[names.index("layer2.1.conv1.kernel")] == "layer2.1.conv1"


def test_rows_may_be_more_than_asked_for_where_names_have_no_blocks():
    names = [f"conv{i}.kernel" for i in range(9)]
    assert rows(names, 4) == [f"conv{i}" for i in range(9)]
