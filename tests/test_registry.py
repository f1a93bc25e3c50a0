"""Names, options and entry points."""

import html
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nutfree as nf
from nutfree import registry
from nutfree.report import catalogue


def test_table_lists_every_kernel_with_the_columns_users_read():
    table = nf.kernels()
    assert table.index.name == "name"
    columns = ["guarantee", "summary", "needs", "family", "draws", "paper"]
    assert list(table.columns) == columns
    assert {"nuts", "mala", "ula"} <= set(table.index)
    assert (table["summary"].str.len() > 10).all()


@pytest.mark.parametrize("width", [80, 300])
def test_a_printed_table_cuts_no_sentence(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    table = nf.kernels()
    printed = repr(table)
    assert max(map(len, printed.splitlines())) <= width
    words = set(" ".join([*table.index, *table["summary"]]).split())
    assert words <= set(printed.split())
    assert ("not shown" in printed) == (width == 80)
    assert all(
        html.escape(s, quote=False) in table._repr_html_() for s in table["summary"]
    )
    assert type(table[["family"]].head(2)) is type(table)


@pytest.mark.parametrize(
    ("family", "member"),
    [
        ("multiscale", "multiscale"),
        ("chain", "clc"),
        ("ensemble", "ensemble"),
        ("bregman", "marbmumla"),
        ("sgld", "sgld"),
        ("federated", "fsgld"),
    ],
)
def test_a_family_name_stands_for_its_recommended_member(family, member):
    spec = registry.get(family)
    assert (spec.name, spec.family) == (member, family)
    members = [s for s in registry.specs().values() if s.family == family]
    assert sum(s.recommended for s in members) == 1


def test_every_biased_kernel_says_what_shows_the_bias():
    for spec in registry.specs().values():
        assert spec.guarantee == "exact" or len(spec.bias) > 20, spec.name


def test_unknown_kernel_suggests_the_nearest():
    with pytest.raises(nf.UnknownKernel, match="Did you mean 'mala'"):
        nf.kernel("malla", potential_fn=lambda x: x**2)


def test_misspelt_option_suggests_the_nearest():
    with pytest.raises(nf.InvalidOption, match="Did you mean 'step_size'"):
        nf.kernel("mala", potential_fn=lambda x: x**2, stepsize=0.1)


@pytest.mark.parametrize("value", [0.0, -1.0, "large", True, [1.0, 2.0]])
def test_option_out_of_range_or_of_the_wrong_type_is_refused(value):
    with pytest.raises(nf.InvalidOption, match="step_size"):
        nf.kernel("mala", potential_fn=lambda x: x**2, step_size=value)


def test_numpyro_kernel_refuses_a_wrong_option_with_our_exception():
    with pytest.raises(nf.InvalidOption, match="target_acept"):
        nf.kernel("nuts", potential_fn=lambda x: x**2, target_acept=0.9)


def test_a_spec_with_an_unknown_word_is_refused():
    spec = nf.KernelSpec("x", "y", "z", "p", draws="chains")
    with pytest.raises(nf.InvalidOption, match="draws='chains'"):
        nf.register(spec)


def test_exact_stands_for_the_exact_kernel_and_its_options():
    options = {"potential_fn": lambda x: x**2}
    kernel = nf.kernel("multalmc", exact=True, num_rounds=3, **options)
    assert kernel.spec.name == "multiscale"
    assert nf.kernel("multalmc", exact=False, **options).spec.name == "multalmc"
    with pytest.raises(nf.InvalidOption, match="write True or False"):
        nf.kernel("multalmc", exact=1, **options)
    with pytest.raises(nf.InvalidOption, match="'multiscale' has no option 'num_lev"):
        nf.kernel("multalmc", exact=True, num_levels=3, **options)
    with pytest.raises(nf.InvalidOption, match="'mala' has no option 'exact'"):
        nf.kernel("mala", exact=True, **options)
    table = catalogue.options_table(registry.get("multalmc"))
    assert "multiscale" in table.loc["exact", "help"]


def test_options_table_lists_the_help_of_every_option():
    table = catalogue.options_table(registry.get("mala"))
    assert "step_size" in table.index
    assert table.loc["step_size", "default"] == "found in warm-up"


def test_attribute_is_the_blackjax_form_and_an_unknown_one_is_an_attribute_error():
    assert nf.mala.spec.name == "mala"
    with pytest.raises(AttributeError, match="mala"):
        _ = nf.malla


def test_the_page_of_kernels_is_what_the_specs_say():
    page = Path(__file__).parents[1] / "KERNELS.md"
    assert page.read_text() == catalogue.documentation(), (
        "run: nutfree kernels --markdown > KERNELS.md"
    )


PLUGIN = """
from dataclasses import replace
from nutfree.kernels.langevin.mala import SPEC as MALA
SPEC = replace(MALA, name="mymala", family="mine", recommended=True)
"""

ENTRY_POINT = """
[nutfree.kernels]
mymala = myplugin:SPEC
broken = nowhere:SPEC
"""


def test_another_package_adds_a_kernel_by_an_entry_point(tmp_path):
    (tmp_path / "myplugin.py").write_text(PLUGIN)
    info = tmp_path / "myplugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: myplugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    program = textwrap.dedent(
        """
        import nutfree as nf
        kernel = nf.kernel("mine", potential_fn=lambda x: 0.5 * x**2)
        print(kernel.spec.name, "mymala" in nf.kernels().index)
        """
    )
    path = [str(tmp_path), str(Path(nf.__file__).parents[1])]
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["mymala", "True"]
    # a package that is broken is named, and takes no other kernel with it
    assert "'broken' (nowhere:SPEC)" in result.stderr


@pytest.mark.parametrize("name", [3, None, nf.mala])
def test_a_kernel_that_is_no_name_is_refused(name):
    with pytest.raises(nf.UnknownKernel, match="write its name"):
        nf.kernel(name, lambda: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_options_must_be_finite(value):
    with pytest.raises(nf.InvalidOption, match="'batch_size'"):
        nf.kernel("sgld", lambda: None, batch_size=value)
    with pytest.raises(nf.InvalidOption, match="'step_size'"):
        nf.kernel("mala", lambda: None, step_size=value)
