"""How an engine generates code: what its target machine was created with.

A target machine of llvmlite's tells nobody its processor, features or code model, and an LLJIT
copies all of them and forgets where from. So they are noted when the machine is created.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import llvmlite.binding as llvm

__all__ = ["TargetOptions"]


@dataclass(frozen=True)
class TargetOptions:
    """The arguments of `Target.create_target_machine`, as llvmlite hands them to LLVM."""

    triple: str
    cpu: str
    features: str
    opt: int
    reloc: str
    codemodel: str
    abiname: str = ""
    emulates_tls: bool = False
    """LLVM's own choice for an engine made without a target machine; not to be had otherwise."""

    @classmethod
    def from_call(cls, _target: Any, *arguments: Any) -> TargetOptions:
        """Of the arguments of `LLVMPY_CreateTargetMachine`."""
        triple, cpu, features, opt, reloc, codemodel, _print, _jit, abiname = arguments
        return cls(
            triple.decode(),
            cpu.decode(),
            features.decode(),
            opt,
            reloc.decode(),
            codemodel.decode(),
            abiname.decode(),
        )

    @classmethod
    def of_host(cls) -> TargetOptions:
        """What LLJIT takes when it is given no target machine (JITTargetMachineBuilder)."""
        return cls(
            triple=llvm.get_process_triple(),
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=2,
            reloc="default",
            codemodel="jitdefault",
            emulates_tls=True,
        )

    @cached_property
    def machine(self) -> Any:
        """A target machine that generates code as an LLJIT with these options does."""
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu,
            features=self.features,
            opt=self.opt,
            reloc=self.reloc,
            codemodel=self.codemodel,
            jit=True,
            abiname=self.abiname,
        )

    @cached_property
    def data_layout(self) -> str:
        return str(self.machine.target_data)
