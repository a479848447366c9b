"""Installs and builds what is timed, in a folder of its own. What is there already stays."""
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).parent
# oneDNN with OpenMP, as PyTorch has it, comes as a library only inside of another package: the newest of its own wheels
# are made for SYCL. The headers are those of the same version.
ONEDNN = ["paddlepaddle==3.3.1", "onednn-devel==2025.0.0"]


class Missing(Exception):
    """What is not there and why."""


@dataclass(frozen=True)
class Program:
    command: list[str]
    env: dict = field(default_factory=dict)


def quietly(*command, env=None):
    """Runs it; its last line says why it failed."""
    env = os.environ | (env or {})
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line for line in done.stdout.strip().splitlines() if line.strip()]
        raise Missing(lines[-1] if lines else f"{command[0]} ended with status {done.returncode}")


class Installer:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _once(self, name: str, what: list[str], make):
        """Calls `make` with a folder, unless it was made for the same before."""
        folder, stamp = self.folder / name, self.folder / f"{name}.stamp"
        wanted = " ".join(what)
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"installing {wanted}", file=sys.stderr)
            make(folder)
            stamp.write_text(wanted)
        return folder

    def _python(self, name: str, *packages: str) -> str:
        def make(folder):
            quietly(sys.executable, "-m", "venv", str(folder))
            quietly(str(folder / "bin/pip"), "install", "--quiet", *packages)

        return str(self._once(name, list(packages), make) / "bin/python")

    def _cargo(self, name: str, native: bool) -> str:
        target = self.folder / (f"build-{name}" if native else "build")
        features = [f"--features={name}"] if native else []
        env = {"CARGO_TARGET_DIR": str(target)}
        if native:
            env["RUSTFLAGS"] = "-C target-cpu=native"
        manifest = str(HERE / "rust/Cargo.toml")
        print(f"building {name}", file=sys.stderr)
        quietly("cargo", "build", "--release", "--manifest-path", manifest, "--bin", name, *features, env=env)
        return str(target / "release" / name)

    # For every processor of its kind, as the crate's users have it: it finds out at run time what this one can do.
    def warpnorm(self) -> Program:
        return Program([self._cargo("warpnorm", native=False)])

    def copy(self) -> Program:
        return Program([self._cargo("copy", native=False)])

    # These know at compile time only.
    def candle(self) -> Program:
        return Program([self._cargo("candle", native=True)])

    def burn(self) -> Program:
        return Program([self._cargo("burn", native=True)])

    def torch(self) -> Program:
        return Program([self._python("torch", "torch", "numpy"), str(HERE / "worker_torch.py")])

    def torch_compile(self) -> Program:
        eager = self.torch()
        env = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            # Compiled code and PyTorch have an OpenMP each, whose threads would spin against one another.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return Program([*eager.command, "compiled"], env)

    def jax(self) -> Program:
        return Program([self._python("jax", "jax", "numpy"), str(HERE / "worker_jax.py")])

    def onnxruntime(self) -> Program:
        python = self._python("onnxruntime", "onnxruntime", "onnx", "numpy")
        return Program([python, str(HERE / "worker_onnxruntime.py")])

    def onednn(self) -> Program:
        def make(folder):
            quietly(
                sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--root-user-action=ignore",
                "--upgrade", "--target", str(folder), *ONEDNN,
            )

        folder = self._once("onednn", ONEDNN, make)
        libraries, program = folder / "paddle/libs", self.folder / "onednn-worker"
        quietly(
            "g++", "-std=c++17", "-O2", str(HERE / "worker_onednn.cpp"), f"-I{folder / 'include'}",
            str(libraries / "libdnnl.so.3"), f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}",
            "-o", str(program),
        )
        return Program([str(program)])
