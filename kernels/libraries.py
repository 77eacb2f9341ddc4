"""Numba's libraries of machine code, as kernels need them: only a whole kernel becomes machine code.

Numba makes machine code of every function by itself, twice wrapped for callers from Python and C, then links its
LLVM IR into the function that calls it and does all that again. Parts of a kernel are never called but from kernels:
they have no wrappers, and stay IR until the kernel that links them in is complete.
"""

import contextlib

from llvmlite.binding import Linkage
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher, cpu_target


class WholeLibrary(JITCodeLibrary):
    """A kernel with all that it calls.

    What it links in is its own. Numba leaves such functions open to be taken from another library that has one of the
    same name, and names them by a counter of the process: code loaded from files of different processes could mix up
    two closures.
    """

    def finalize(self):
        self._linking_libraries = [_Alone(library) if isinstance(library, PartLibrary) else library
                                   for library in _with_parts(self._linking_libraries)]
        super().finalize()

    def _optimize_final_module(self):
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal


class PartLibrary(JITCodeLibrary):
    """What kernels call, as IR, without the parts that it calls itself.

    It is optimised: left to the kernel, Winograd comes out a sixth slower. What Numba makes of a prange, the loop and
    two wrappers that hold it again, is not.
    """

    parts = ()

    def finalize(self):
        self.parts, self._linking_libraries = tuple(self._linking_libraries), []
        super().finalize()

    def module_alone(self):
        return super()._get_module_for_linking()

    def _get_module_for_linking(self):
        """With all parts, for a function that is no kernel: np.empty, say, is a part of whatever calls it."""
        module = self.module_alone().clone()
        for library in _with_parts(self.parts):
            alone = isinstance(library, PartLibrary)
            module.link_in(library.module_alone() if alone else library._get_module_for_linking(), preserve=True)
        return module

    def _optimize_final_module(self):
        if "gufunc" not in self.name.lower():
            super()._optimize_final_module()

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):
        return _WithoutEnvironment(self._codegen)


class _Alone:
    """A part as a kernel links it."""

    def __init__(self, part):
        self._reload_init = part._reload_init
        self._get_module_for_linking = part.module_alone


def _with_parts(libraries):
    """These and all their parts, each before what it calls: a function that nothing refers to is not linked."""
    found = []

    def visit(libraries):
        for library in libraries:
            if library not in found:
                visit(getattr(library, "parts", ()))
                found.append(library)
    visit(libraries)
    return found[::-1]


class _WithoutEnvironment:
    """A code generator that leaves a function without its Python objects, which compiled kernels never use."""

    def __init__(self, codegen):
        self._codegen = codegen

    def __getattr__(self, name):
        return getattr(self._codegen, name)

    def set_env(self, name, environment):
        pass


@contextlib.contextmanager
def compiling(name):
    """While a kernel whose function has this name is compiled, every other library is a part of it."""
    codegen = cpu_target.target_context.codegen()

    def create_library(library, **options):
        return (WholeLibrary if library == name else PartLibrary)(codegen, library, **options)

    with global_compiler_lock:
        outer = vars(codegen).get("create_library")
        codegen.create_library = create_library
        try:
            yield
        finally:
            if outer:
                codegen.create_library = outer
            else:
                del codegen.create_library


class DeviceFunction(CPUDispatcher):
    """A function that only compiled code can call."""

    def __init__(self, function, **options):
        options = {"nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
        super().__init__(function, targetoptions=options)

    def add_overload(self, compiled):
        self.overloads[tuple(compiled.signature.args)] = compiled

    def _compile_for_args(self, *args, **options):
        raise TypeError(f"{self.py_func.__qualname__} is a part of kernels, which Python cannot call; "
                        "its .py_func is the function as it was written")
