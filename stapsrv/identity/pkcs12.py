"""Reads private keys from a PKCS#12 bundle (RFC 7292) in BER (X.690 8.1), as NSS's pk12util writes it.

BER leaves lengths open and splits strings. ``cryptography`` reads that only through a deprecated fallback,
with a warning each time. So the outer layers are decoded here, and ``cryptography`` gets the encrypted
PKCS#8 keys in DER. The bundle's MAC is not checked: it comes from a child process through memory.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_private_key

_CONSTRUCTED = 0x20
_OCTET_STRING = 0x04
_HIGH_TAG = 0x1F
_INDEFINITE = 0x80
_END_OF_CONTENTS = b"\0\0"
# A bundle nests about ten deep.
_MAX_DEPTH = 32

_DATA = bytes.fromhex("2a864886f70d010701")
_SHROUDED_KEY_BAG = bytes.fromhex("2a864886f70d010c0a0102")


def private_keys(bundle: bytes, password: bytes) -> list[PrivateKeyTypes]:
    """Decrypt every private key of ``bundle``; slow on purpose (key derivation), about 0.1 s a key.

    Raises:
        ValueError: not a PKCS#12 bundle protected by this password.
    """
    _version, authenticated_safe, *_mac = _children(_only(bundle))
    keys = []
    for content_info in _children(_only(_data(authenticated_safe))):
        kind, *_rest = _children(content_info)
        if kind != _DATA:
            continue  # the certificates, encrypted
        for bag in _children(_only(_data(content_info))):
            bag_kind, value, *_attributes = _children(bag)
            if bag_kind == _SHROUDED_KEY_BAG:
                # An EncryptedPrivateKeyInfo (PKCS#8).
                keys.append(load_der_private_key(value, password))
    return keys


def _data(content_info: bytes) -> bytes:
    """Return the contents of the octet string in a ContentInfo."""
    kind, value = _children(content_info)
    if kind != _DATA:
        raise ValueError("the bundle is signed, not protected by a password")
    return _only(value)


def _only(encoded: bytes) -> bytes:
    """Return the contents of an encoded element."""
    (content,) = _children(encoded)
    return content


def _children(content: bytes) -> list[bytes]:
    """Return the contents of each of a sequence of encoded elements."""
    children, at = [], 0
    while at < len(content):
        _tag, child, at = _read(content, at, depth=0)
        children.append(child)
    return children


def _read(data: bytes, at: int, *, depth: int) -> tuple[int, bytes, int]:
    """Return the tag of the BER element at ``at``, its contents in DER, and its end."""
    tag, length, start = _read_header(data, at)
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    end = len(data) if length is None else start + length
    if end > len(data):
        raise ValueError("cut short")
    if not tag & _CONSTRUCTED:
        if length is None:
            raise ValueError("a primitive element of open length")
        return tag, data[start:end], end

    in_pieces = tag == _OCTET_STRING | _CONSTRUCTED
    parts = []
    at = start
    while at < end and not (length is None and data.startswith(_END_OF_CONTENTS, at)):
        child_tag, child, at = _read(data, at, depth=depth + 1)
        parts.append(child if in_pieces else _encode(child_tag, child))
    if length is None:
        if at == end:
            raise ValueError("cut short")
        at += len(_END_OF_CONTENTS)
    elif at != end:
        raise ValueError("an element longer than the one that holds it")
    return (_OCTET_STRING if in_pieces else tag), b"".join(parts), at


def _read_header(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Return the tag, the length (None if indefinite), and the start of the contents."""
    header = data[at : at + 2]
    if len(header) < 2:  # noqa: PLR2004 - a tag and a length
        raise ValueError("cut short")
    tag, length = header
    at += 2
    if tag & _HIGH_TAG == _HIGH_TAG:
        raise ValueError("a tag that PKCS#12 does not know")
    if length == _INDEFINITE:
        return tag, None, at
    if length > _INDEFINITE:
        octets = length - _INDEFINITE
        return tag, int.from_bytes(data[at : at + octets], "big"), at + octets
    return tag, length, at


def _encode(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < _INDEFINITE:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, _INDEFINITE | len(octets))) + octets + content
