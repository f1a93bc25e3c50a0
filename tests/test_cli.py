"""The command line does what its help says, and its errors say what to write."""

import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from nutfree.cli import app

MODEL = """
import numpy as np
import numpyro
import numpyro.distributions as dist


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def data():
    return {"y": np.array([0.5, 1.0, 0.2])}
"""
SHORT = ["--num-warmup", "50", "--num-samples", "60", "--num-chains", "2"]


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "regression.py"
    path.write_text(MODEL)
    return str(path)


def call(*args):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})


def said(result):
    """What was printed, line breaks taken out."""
    return " ".join(result.output.split())


def test_kernels_lists_nuts():
    result = call("kernels")
    assert result.exit_code == 0
    assert "nuts" in result.output


def test_sample_writes_draws_table_and_plot(model_file, tmp_path):
    out = tmp_path / "out"
    options = ["--option", "step_size=0.1", "--no-progress", "--out", str(out)]
    result = call("sample", model_file, "--kernel", "mala", *SHORT, *options)
    assert result.exit_code == 0, result.output
    with xr.open_datatree(out / "mala.nc") as tree:
        assert tree["posterior"]["mu"].shape == (2, 60)
        assert "0.1" in tree["sample_stats"].attrs["options"]
    assert pd.read_csv(out / "table.csv")["parameter"].tolist() == ["mu"]
    assert (out / "mala_draws.png").stat().st_size > 1000


def test_names_are_whole_in_a_narrow_terminal(model_file):
    args = ["sample", model_file, "--kernel", "nuts", *SHORT, "--no-progress"]
    result = CliRunner().invoke(app, args, env={"COLUMNS": "80"})
    row = next(line for line in result.output.splitlines() if "mu" in line)
    assert "…" not in row
    result = CliRunner().invoke(app, ["kernels"], env={"COLUMNS": "80"})
    assert "blackjax.elliptical_slice" in result.output


def test_compare_writes_a_report(model_file, tmp_path):
    out = tmp_path / "out"
    args = ["--kernels", "nuts,mala", "--no-progress", "--out", str(out)]
    result = call("compare", model_file, *SHORT, *args)
    assert result.exit_code == 0, result.output
    written = {path.name for path in out.iterdir()}
    assert {"report.html", "table.csv", "nuts.nc", "mala.nc"} <= written
    assert "comparison.png" in written
    assert pd.read_csv(out / "table.csv", index_col=0).index.tolist() == [
        "nuts",
        "mala",
    ]


def test_recommend_puts_nuts_first_on_a_plain_model(model_file):
    result = call("recommend", model_file)
    assert result.exit_code == 0, result.output
    head, first, *_ = result.output.splitlines()
    assert [line.split()[0] for line in (head, first)] == ["kernel", "nuts"]


def refused(*args):
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return said(result)


def test_a_missing_file(tmp_path):
    assert "no file" in refused("recommend", str(tmp_path / "none.py"))


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_file_without_model_or_data(name, tmp_path):
    path = tmp_path / "half.py"
    path.write_text(MODEL.replace(f"def {name}(", f"def other_{name}("))
    assert f"no function '{name}'" in refused("recommend", str(path))


@pytest.mark.parametrize("text", ["def model(:", "1 / 0", "import nowhere"])
def test_a_file_that_cannot_be_imported(text, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert "cannot be imported" in refused("recommend", str(path))


def test_data_that_fail_name_the_line(tmp_path):
    path = tmp_path / "unread.py"
    path.write_text(
        "def model():\n    pass\n\ndef data():\n    return open('none.csv')"
    )
    said = refused("recommend", str(path))
    assert "data() that fails (line 5): FileNotFoundError" in said


def test_without_matplotlib_a_report_is_refused_before_the_run(
    model_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("nutfree.report.plots.find_spec", lambda name: None)
    args = ["compare", model_file, "--kernels", "nuts", "--out", str(tmp_path / "out")]
    assert "pip install matplotlib" in refused(*args)


def test_a_directory_that_cannot_be_made(model_file, tmp_path):
    (tmp_path / "taken").touch()
    out = str(tmp_path / "taken" / "out")
    said = refused("sample", model_file, "--kernel", "mala", "--out", out)
    assert "cannot be made" in said


def test_an_unknown_kernel_suggests_the_nearest(model_file):
    assert "Did you mean 'nuts'" in refused("sample", model_file, "--kernel", "nutz")
    assert "Did you mean 'mala'" in refused(
        "compare", model_file, "--kernels", "nuts,malla"
    )


def test_bad_options(model_file):
    sample = ["sample", model_file, "--kernel", "mala", "--option"]
    assert "key=value" in refused(*sample, "step_size")
    assert "Did you mean 'step_size'" in refused(*sample, "step_sise=0.1")
    assert "step_size" in refused(*sample, "step_size=-1")
    assert refused("sample", model_file, "--kernel", "mala", "--num-chains", "0")


def test_the_version_is_shown():
    import nutfree

    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"nutfree {nutfree.__version__}\n")


def test_data_may_be_called_like_a_setting(tmp_path):
    path = tmp_path / "seeded.py"
    path.write_text(
        MODEL.replace("model(y)", "model(y, seed=0)").replace(
            'return {"y"', 'return {"seed": 3, "y"'
        )
    )
    done = CliRunner().invoke(app, ["recommend", str(path)])
    assert done.exit_code == 0, done.output
