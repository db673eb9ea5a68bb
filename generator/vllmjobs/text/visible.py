"""Text that cannot deceive: what nobody sees, or what a terminal obeys, is spelt out."""

# Blank, though Unicode counts them among the letters and symbols: fillers of Hangul, and empty braille.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"


def visible(text: str) -> str:
    r"""Return the text on one line, with `\n`, `\x1b`, `\u202e` for what is not seen, or turns text.

    These are Unicode's categories C (control, format, unassigned) and Z (separators) but for the space, and
    variation selectors: a terminal obeys the first, and a reviewer does not see the others.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if is_hidden(character) else character
        for character in text
    )


def one_line(text: str) -> str:
    """Return the text with a space for each newline: a line that is made of it stays one."""
    return text.replace("\n", " ")


def visible_lines(text: str) -> str:
    """Return the text with each of its lines visible."""
    return "\n".join(map(visible, text.split("\n")))


def visible_json(text: str) -> str:
    r"""Return JSON of the same value, whose strings have `\u202e` for what is not seen; newlines are kept."""
    return "\n".join(
        line
        if line.isascii() and line.isprintable()
        else "".join(_utf16(character) if is_hidden(character) else character for character in line)
        for line in text.split("\n")
    )


def is_hidden(character: str) -> bool:
    """Tell whether nobody sees a character that is not the space, or a terminal obeys it."""
    # https://docs.python.org/3/library/stdtypes.html#str.isprintable: C and Z, but for the space.
    return not character.isprintable() or character in _BLANK or "\ufe00" <= character <= "\ufe0f"


def _utf16(character: str) -> str:
    """Return a character as JSON escapes it (RFC 8259, section 7): by the units of UTF-16."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
