"""Builds the native decoder and norms where a C compiler is; without one the install succeeds too.

With libjpeg-turbo's headers (Debian: libjpeg62-turbo-dev) it also decodes progressive and CMYK
files itself and can write restart-indexed ones. The norms need a compiler that knows OpenMP as
GNU's library has it: gcc on Linux.
"""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["batch", "baseline", "huffman", "kernels", "kernels_avx2", "restart", "turbo"]
EXTRA = os.environ.get("MOBILENEXT_NATIVE_CFLAGS", "").split()
DECODER, NORMS = "mobilenext.data._native", "mobilenext.models._norms"
# Contracted multiply-adds would round differently on processors that have them.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", *EXTRA]


class BuildNative(build_ext):
    """Asks the compiler what there is, then builds or leaves out."""

    def build_extension(self, ext: Extension) -> None:
        """Build, the decoder with libjpeg if it links."""
        if sys.platform == "win32":
            logging.warning("mobilenext: %s is not built on Windows", ext.name)
            return
        if ext.name == DECODER and _links_libjpeg([*self.compiler.compiler_so, *EXTRA]):
            ext.define_macros.append(("HAVE_LIBJPEG", "1"))
            ext.libraries.append("jpeg")
        try:
            super().build_extension(ext)
        except Exception as error:  # no compiler, or one that is too old: others serve instead
            logging.warning("mobilenext: %s was not built (%s)", ext.name, error)


def _links_libjpeg(compiler: list[str]) -> bool:
    program = (
        "#include <stdio.h>\n#include <jpeglib.h>\n"
        "#if !defined(JCS_EXTENSIONS)\n#error not libjpeg-turbo\n#endif\n"
        "int main(void) { struct jpeg_error_mgr e; return jpeg_std_error(&e) == 0; }\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(program)
        command = [*compiler, str(source), "-o", str(Path(folder) / "probe"), "-ljpeg"]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError:
            return False
        return done.returncode == 0


PACKAGES = find_packages(include=["mobilenext*"])

setup(
    packages=[*PACKAGES, "hydra_plugins", "mobilenext.configs"],
    # The configs stand at the top level of the source, and are found inside the installed package.
    package_dir={"mobilenext.configs": "configs"},
    ext_modules=[
        Extension(
            DECODER,
            sources=[f"native/{name}.c" for name in SOURCES],
            depends=["native/mobilenext.h", "native/internal.h", "native/kernels.inc"],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=["-pthread", *EXTRA],
            libraries=["m"],
            optional=True,
        ),
        Extension(
            NORMS,
            sources=["native/norms.c"],
            # Comparisons become masks of vectors; OpenMP is not linked, torch has loaded one.
            extra_compile_args=[*FLAGS, "-fopenmp", "-fno-trapping-math", "-fno-math-errno"],
            extra_link_args=EXTRA,
            libraries=["m"],
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildNative},
)
