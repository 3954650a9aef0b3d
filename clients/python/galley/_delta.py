"""Messages that came as the difference from the one before."""

from __future__ import annotations

from ._errors import DeltaError

_LETTERS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
_DIGITS = {letter: value for value, letter in enumerate(_LETTERS)}


def apply_delta(base: str, delta: str) -> str:
    """The text that ``delta`` is the difference of from ``base``, in the format of Fossil: for what reads streams and
    WebSockets by itself. A subscription with ``delta=True`` does it.

    Raises ``DeltaError`` where the difference is not of this base: resume after the last message that you have, and a
    whole one comes first.
    """
    source, steps = base.encode(), delta.encode()
    at = 0

    def take_number() -> tuple[int, bytes]:
        nonlocal at
        number = 0
        while at < len(steps):
            digit = _DIGITS.get(steps[at])
            at += 1
            if digit is None:
                return number, steps[at - 1 : at]
            number = (number << 6 | digit) & 0xFFFFFFFF
        raise DeltaError("it is cut off")

    size, begin = take_number()
    if begin != b"\n":
        raise DeltaError("it does not begin with a length")
    text = bytearray()
    while True:
        number, operator = take_number()
        if operator == b"@":
            offset, end = take_number()
            piece = source[offset : offset + number]
            if end != b"," or len(piece) < number:
                raise DeltaError("it copies what the text does not have")
        elif operator == b":":
            piece = steps[at : at + number]
            at += number
            if len(piece) < number:
                raise DeltaError("it is cut off")
        elif operator == b";":
            if len(text) != size or _checksum(text) != number:
                raise DeltaError("the result has another length or checksum")
            return text.decode()
        else:
            raise DeltaError("it has an unknown operator")
        text += piece
        if len(text) > size:
            raise DeltaError("the result is longer than it says")


def _checksum(text: bytearray) -> int:
    """The sum of all words of four bytes, the last one filled up with zeros."""
    sums = (sum(text[nth::4]) << (24 - 8 * nth) for nth in range(4))
    return sum(sums) & 0xFFFFFFFF
