"""The house rules that a reader of one file cannot see."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from architecture import box_of, floors, modules, own_imports

ROOT = Path(__file__).parent.parent

# Ground floor first. Within a floor, modules may import each other.
FLOORS = [set(floor.names) for floor in floors()]


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if box_of(module) in floor)


def test_imports_point_down_the_floors():
    upwards = [
        f"{name} imports {imported}"
        for name, file in modules()
        for imported in own_imports(file)
        if floor_of(imported) > floor_of(name)
    ]
    assert upwards == []


def test_the_test_of_floors_sees_an_import_that_points_up(tmp_path):
    file = tmp_path / "scores.py"
    file.write_text("def f():\n    from memtools.studies import folder\n")
    (imported,) = own_imports(file)
    assert floor_of(imported) > floor_of("memtools.scores")


def test_functorch_is_nowhere_imported():
    for name, file in modules():
        assert not re.search(r"^\s*(from|import) functorch", file.read_text(), re.M), name


RUNS_CODE = {
    "eval", "exec", "os.system", "torch.jit.load", "torch.package.PackageImporter", "yaml.load",
    "pandas.read_pickle", "pd.read_pickle", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
"""What runs the code that it reads, or may."""

UNPICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules that do so with all that they offer but ``dump`` and ``dumps``."""

WRITES_ITS_OWN = {"memtools.sensitivity.program"}
"""Modules that compile text; all of it is theirs."""


def dangers(file: Path) -> list[str]:
    """Calls in a file that could run what somebody else has written."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLES:
            found.append(f"from {node.module}")
        if isinstance(node, ast.Import):
            found += [
                f"{a.name} as {a.asname}" for a in node.names if a.asname and a.name in UNPICKLES
            ]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLES:
            found += [ast.unparse(node)] * (node.attr not in ("dump", "dumps"))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in RUNS_CODE or given.get("shell") == "True":
            found.append(name)
        elif name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        elif name == "np.load" and given.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
    return found


def test_nothing_runs_what_it_reads():
    files = modules() + [(f"bench.{file.stem}", file) for file in (ROOT / "bench").rglob("*.py")]
    found = {name: calls for name, file in files if (calls := dangers(file))}
    assert found.keys() <= WRITES_ITS_OWN, found


def test_the_test_of_dangers_sees_them(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(
        "import pickle as p\nfrom marshal import loads\npickle.loads(x)\npickle.dumps(x)\neval(x)\n"
        "torch.load(x)\nnp.load(x)\nrun(x, shell=True)\n"
        "torch.load(x, weights_only=True)\nnp.load(x, allow_pickle=False)\n"
    )
    assert len(dangers(file)) == 7


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_wheel_holds_the_two_packages_and_no_package_called_kernels(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"memtools", "memtools_kernels"}
    for needed in (
        "memtools/py.typed",
        "memtools_kernels/py.typed",
        "memtools/report/page.html.j2",
    ):
        assert needed in wheel


def test_kernels_is_no_regular_package_beside_this_install():
    spec = find_spec("kernels")
    assert spec is None or spec.origin is None or not spec.origin.startswith(str(ROOT))
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_transformers_imports_its_models_beside_this_install():
    pytest.importorskip("transformers", reason="transformers is not installed")
    program = "import memtools; from transformers import BertModel; print(BertModel.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "BertModel", done.stderr


def test_import_brings_in_nothing_that_an_extra_installs():
    program = "import sys, torch, memtools; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    heavy = {
        re.split(r"[\[<>=]", requirement)[0].replace("scikit-learn", "sklearn")
        for name in ("study", "metrics", "lightning", "transformers", "test")
        for requirement in extras["optional-dependencies"][name]
    }
    # Some come with torch itself.
    bare = subprocess.run(
        [sys.executable, "-c", program.replace(", memtools", "")], capture_output=True, text=True
    )
    added = set(loaded.stdout.split()) - set(bare.stdout.split())
    assert "memtools" in added
    assert added & (heavy | {"torchvision", "pandas"} - {"memtools"}) - {"memtools"} == set()


def test_triton_is_not_needed_to_import():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, memtools; print(float(memtools.gini([0.0, 1.0])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "0.5", done.stderr
