"""Pages of the site that are made when it is built: kernels, notebooks, benchmarks.

MkDocs calls the functions whose names begin with `on_`, see `mkdocs.yml`.
"""

import base64
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File

from nutfree import registry
from nutfree.facts import Facts
from nutfree.report.catalogue import options_table

ROOT = Path(__file__).parents[1]
#: Notebooks by which a reader begins; the others follow in the order of their names.
FIRST = ("first_posterior", "comparing_with_nuts", "multimodal")
#: Files outside this folder that are pages, and how they are called.
KEPT_ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
#: Where links of these files lead on the site.
LINKS = {
    "docs/": "",
    "KERNELS.md": "kernels/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
#: Posteriors about which each kernel is asked.
ASKED = {
    "smooth, with one mode": Facts(dim=10, num_modes=1),
    "with separate modes": Facts(dim=10, num_modes=4),
    "without a gradient": Facts(dim=10, has_gradient=False),
    "with kinks": Facts(dim=10, num_modes=1, non_smooth=("beta",)),
    "with bounds": Facts(dim=10, num_modes=1, bounded=("share",)),
    "over a million rows": Facts(dim=10, num_modes=1, num_data=1_000_000),
    "over data of two owners": Facts(dim=10, num_modes=1, num_owners=2),
}


def on_files(files: Any, config: Any) -> Any:
    for path, text in _pages():
        files.append(File.generated(config, path, content=text))
    for name in _notebooks():
        page, pictures = _notebook(name)
        files.append(File.generated(config, f"notebooks/{name}.md", content=page))
        for path, content in pictures.items():
            files.append(File.generated(config, path, content=content))
    return files


def on_config(config: Any) -> Any:
    """Put a page for each kernel, by family, and each notebook into the menu."""
    families: dict[str, list] = {}
    for spec in registry.specs().values():
        families.setdefault(spec.family, []).append({spec.name: _page_of(spec.name)})
    for entry in config.nav:
        if "Kernels" in entry:
            entry["Kernels"] = [
                "kernels/index.md",
                *({family: pages} for family, pages in families.items()),
            ]
        if "Notebooks" in entry:
            entry["Notebooks"] = [f"notebooks/{name}.md" for name in _notebooks()]
    return config


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Write equations in MathML, which browsers show without a script."""
    del rest
    if not page.file.src_uri.startswith("notebooks/"):
        return markdown
    markdown = re.sub(
        r"\$\$(.+?)\$\$",
        lambda m: convert(" ".join(m[1].split()), display="block"),
        markdown,
        flags=re.DOTALL,
    )
    return re.sub(r"(?<![\\$`])\$([^$\n`]+)\$", lambda m: convert(m[1]), markdown)


def _notebooks() -> list[str]:
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    return [*FIRST, *(name for name in names if name not in FIRST)]


def _pages() -> Iterator[tuple[str, str]]:
    for name, path in KEPT_ELSEWHERE.items():
        yield path, _moved((ROOT / name).read_text())
    yield "benchmarks.md", _benchmarks()
    yield "kernels/index.md", _kernels()
    modules = dict(_modules())
    for spec in registry.specs().values():
        yield _page_of(spec.name), _kernel(spec, modules.get(spec.name))


def _moved(text: str) -> str:
    """A page of the repository's root, with its links as the site has them."""

    def moved(match: re.Match) -> str:
        label, link = match[1], match[2]
        for old, new in LINKS.items():
            if link.startswith(old):
                return f"[{label}]({new}{link[len(old) :]})"
        outside = not link.startswith(("http", "#"))
        return f"`{link}`" if outside else match[0]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", moved, text)


def _benchmarks() -> str:
    lines = [
        "# Benchmarks",
        "",
        "Each runs ours and named peers in one process, so its figures are ratios and "
        "counts, and prints a table. `make bench` runs all in quick form, the commands "
        "below each in full; `--quick` makes it minutes.",
    ]
    source = (ROOT / "benchmarks" / "run.py").read_text()
    names = re.search(r"NAMES = \((.*?)\)", source, re.DOTALL)
    for name in re.findall(r'"(\w+)"', names[1] if names else ""):
        source = (ROOT / "benchmarks" / f"{name}.py").read_text()
        title, _, rest = source.split('"""')[1].partition("\n")
        command = f"```text\npython benchmarks/run.py {name}\n```"
        lines += ["", f"## {name}", "", title, "", rest.strip(), "", command]
    return "\n".join(lines)


def _modules() -> Iterator[tuple[str, Any]]:
    """The module of each built-in kernel, by the kernel's name."""
    for name in importlib.import_module("nutfree.kernels").BUILTIN:
        module = importlib.import_module(f"nutfree.kernels.{name}")
        many = getattr(module, "SPECS", None)
        for spec in many or (module.SPEC,):
            yield (
                spec.name,
                importlib.import_module(spec.init.__module__) if many else module,
            )


def _page_of(name: str) -> str:
    return f"kernels/{name.replace('.', '_')}.md"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _kernels() -> str:
    lines = [
        "# Kernels",
        "",
        "*exact*: the posterior is what the draws converge to. *biased*: an option "
        "trades a small error for speed; the kernel's page says which, and what shows "
        "the error.",
        "",
        _row("kernel", "what it is", "needs", "draws", "promise"),
        _row(*["---"] * 5),
    ]
    for spec in registry.specs().values():
        link = f"[{spec.name}]({_page_of(spec.name).removeprefix('kernels/')})"
        needs = ", ".join(spec.needs)
        lines.append(_row(link, spec.summary, needs, spec.draws, spec.guarantee))
    return "\n".join(lines)


def _kernel(spec: registry.KernelSpec, module: Any) -> str:
    lines = [f"# {spec.name}", "", f"{spec.summary[0].upper()}{spec.summary[1:]}.", ""]
    picture = ROOT / "docs" / "img" / "kernels" / f"{spec.name}.png"
    if picture.exists():
        lines += [f"![Draws of {spec.name}](../img/kernels/{picture.name})", ""]
    lines += [_row("", spec.name), _row("---", "---"), *_facts(spec), ""]
    document = (module.__doc__ or "").strip() if module is not None else ""
    if document:
        lines += ["## The algorithm", "", _document(document), ""]
    lines += ["## When to use it, and when not", ""]
    lines += ["What `nf.recommend` says of it, for a posterior that is", ""]
    lines += [_row("", "fits", "because"), _row("---", "---", "---")]
    lines += [_row(kind, *_asked(spec, facts)) for kind, facts in ASKED.items()]
    lines += ["", "## How to call it", "", "```text"]
    lines += [f'nf.kernel("{spec.name}", model)', "```", ""]
    options = options_table(spec)
    if len(options):
        lines += ["## Options", "", _row("option", "default", "what it is")]
        lines += [_row("---", "---", "---")]
        lines += [_row(f"`{n}`", f"`{d}`", h) for n, d, h in options.itertuples()]
    return "\n".join(lines)


def _facts(spec: registry.KernelSpec) -> Iterator[str]:
    yield _row("family", spec.family)
    yield _row("promise", spec.guarantee)
    if spec.bias:
        yield _row("bias", spec.bias)
    for name, order in spec.bias_order.items():
        falls = "geometrically" if order == float("-inf") else f"with power {order:g}"
        yield _row(f"bias in `{name}`", f"changes {falls}")
    words = {
        "chain": "a chain",
        "independent": "independent of each other; their order means nothing",
        "ensemble": "members of an ensemble; their order means nothing",
    }
    yield _row("draws", words[spec.draws])
    if not spec.uses_gradient:
        yield _row("cost of a transition", "density values, no gradient")
    elif isinstance(spec.gradients, int | float):
        plural = "" if spec.gradients == 1 else "s"
        yield _row("cost of a transition", f"{spec.gradients:g} gradient{plural}")
    needs = ", ".join(f"`{part}`" for part in spec.needs)
    yield _row("needs of the model", needs or "nothing but a density")
    yield _row("reference", spec.paper)


def _asked(spec: registry.KernelSpec, facts: Facts) -> tuple[str, str]:
    has = {
        "minibatch": facts.num_data is not None,
        "shards": facts.num_owners > 1,
        "split": bool(facts.non_smooth or facts.bounded),
    }
    missing = [part for part in spec.needs if not has.get(part, True)]
    if not facts.has_gradient and spec.uses_gradient:
        return "no", "it needs a gradient"
    if missing:
        return "no", f"it needs a {', '.join(missing)}"
    fit = spec.suits(facts)
    return "yes" if fit.fits and fit.score >= 1 else "hardly", fit.why


def _document(text: str) -> str:
    """A module's docstring, whose indented equations are code blocks in Markdown."""
    lines, before = [], ""
    for line in text.splitlines():
        if line.startswith("    ") and before and not before.startswith("    "):
            lines.append("")
        lines.append(line)
        before = line
    return "\n".join(lines)


def _notebook(name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with its stored outputs as a page, and its pictures."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    parts, pictures = [], {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"`(\w+)\.ipynb`", r"[`\1`](\1.md)", cell.source))
            continue
        source = re.sub(r"^%.*\n?", "", cell.source, flags=re.M).strip()
        if source:
            parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                path = f"notebooks/{name}_{number}_{place}.png"
                pictures[path] = base64.b64decode(data["image/png"])
                parts.append(f"![]({Path(path).name})")
            elif "text/html" in data:
                html = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S)
                parts.append(f'<div class="output">\n{_on_one_line(html)}\n</div>')
            else:
                text = output.get("text") or data.get("text/plain", "")
                if output.get("name") == "stderr":
                    text = _warnings(text)
                if text.strip():
                    parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts), pictures


def _warnings(text: str) -> str:
    """Warnings without the lines of code that raised them, in lines that fit."""
    said = [line for line in text.splitlines() if not line.startswith("  ")]
    return "\n".join(textwrap.fill(line, 78) for line in said)


def _on_one_line(html: str) -> str:
    return " ".join(html.split())
