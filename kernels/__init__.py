"""Triton kernels. They install as `modernbert_fast.kernels`.

Hugging Face has a package named `kernels`, and transformers imports whatever answers to that name. With the
repository root on `sys.path` that would be this folder, so under that name it steps aside: it loads the real
package if there is one, and otherwise reports a version that transformers reads as "too old to use".
"""

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    __version__ = "0.0.0"
    _root = Path(__file__).resolve().parents[1]
    _spec = PathFinder.find_spec("kernels", [entry for entry in sys.path if Path(entry or ".").resolve() != _root])
    if _spec is not None and _spec.loader is not None:
        sys.modules["kernels"] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["kernels"])
