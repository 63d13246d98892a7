"""The rules of an `.eh_frame` by function, free of addresses, for `perfmap`.

What concerns exceptions alone, personality and language-specific data, is left out: it holds
addresses, and an unwinder that only shows a stack has no use for it. The format: see `ehframe`.
"""

from __future__ import annotations

from perfmap import FrameRules

from .ehframe import ABSOLUTE, POINTER_FORMATS, WORD, read_frames, read_leb128
from .errors import JITListenerError

__all__ = ["read_rules"]


def read_rules(content: bytes, address: int) -> dict[int, FrameRules]:
    """The rules of each function, by its address, of a relocated `.eh_frame` at `address`.

    Raises JITListenerError, with the offset, for what is malformed.
    """
    found: dict[int, FrameRules] = {}
    cies: dict[int, _CIE] = {}
    for pc, _, entry in read_frames(content, address):
        offset = entry - address
        try:
            cie_offset = offset + 4 - _word(content, offset + 4)
            cie = cies.get(cie_offset)
            if cie is None:
                cie = cies[cie_offset] = _CIE(_entry(content, cie_offset))
            found[pc] = cie.rules(_entry(content, offset))
        except (IndexError, ValueError):
            raise JITListenerError(
                f".eh_frame, offset {offset:#x}: an FDE or its CIE that is cut off"
            ) from None
    return found


class _CIE:
    def __init__(self, body: bytes) -> None:
        """`body` follows the length."""
        version = body[4]
        end = body.index(0, 5)
        augmentation = body[5:end].decode("latin-1")
        code_alignment, at = read_leb128(body, end + 1)
        data_alignment, at = read_leb128(body, at, signed=True)
        return_register, at = (body[at], at + 1) if version == 1 else read_leb128(body, at)
        encoding = ABSOLUTE
        self._has_data = augmentation.startswith("z")
        if self._has_data:
            size, at = read_leb128(body, at)
            place, at = at, at + size
            for letter in augmentation[1:]:
                if letter == "R":
                    encoding = body[place]
                if letter in "RL":
                    place += 1
                elif letter == "P":
                    place += 1 + POINTER_FORMATS[body[place] & 0x0F].size
        self._address_size = POINTER_FORMATS[encoding & 0x0F].size
        letters = "".join(letter for letter in augmentation if letter in "SB")
        self._rules = FrameRules(
            code_alignment, data_alignment, return_register, body[at:], b"", letters
        )

    def rules(self, fde: bytes) -> FrameRules:
        """The rules of an FDE of this CIE, given by what follows its length."""
        at = 4 + 2 * self._address_size
        if self._has_data:
            size, at = read_leb128(fde, at)
            at += size
        if at > len(fde):
            raise IndexError
        return self._rules._replace(rules=fde[at:])


def _entry(content: bytes, offset: int) -> bytes:
    """What follows the length of the entry at `offset`."""
    return content[offset + 4 : offset + 4 + _word(content, offset)]


def _word(content: bytes, offset: int) -> int:
    (value,) = WORD.unpack_from(content, offset)
    return int(value)
