"""Loads code, calls `getppid`, frees the code, calls `getppid` again: places to stop at."""

import os
import sys

from jit import Program, initialize, source_ir

import listeners

initialize()
program = Program(sys.argv[1])
listeners.attach(program.engine, listeners.GDBRegistration(), listeners.PerfMap())
program.load(source_ir(), "steps")
os.getppid()
program.unload()
os.getppid()
