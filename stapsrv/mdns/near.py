"""A socket that hears its own link alone.

Whatever is sent to a multicast address comes from this link. But port 5353 is open to single packets from
anywhere, and with those a host far away could contest names, or have others flooded with answers. A packet
that no router has touched is known by its hop limit, which every responder sets to 255 (RFC 6762, 11).

The kernel sorts them out, by a filter on the socket (the classic instructions of BPF,
Documentation/networking/filter.rst).
"""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF: where the packet's IP header begins
_HOPS = 255
_WHOLE, _NOTHING = 0xFFFFFFFF, 0

_LOAD_BYTE, _SHIFT_RIGHT, _RETURN = 0x30, 0x74, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x15, 0x35

_PROGRAM = (
    # Instruction, how many to skip if so, if not, operand.
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
    (_SHIFT_RIGHT, 0, 0, 4),
    (_JUMP_IF_EQUAL, 4, 0, 6),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 16),  # IPv4: the destination
    (_JUMP_IF_AT_LEAST, 6, 0, 224),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 8),  # the time to live
    (_JUMP_IF_EQUAL, 4, 5, _HOPS),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 24),  # IPv6: the destination
    (_JUMP_IF_EQUAL, 2, 0, 0xFF),
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 7),  # the hop limit
    (_JUMP_IF_EQUAL, 0, 1, _HOPS),
    (_RETURN, 0, 0, _WHOLE),
    (_RETURN, 0, 0, _NOTHING),
)


def hear_link_only(receiver: socket.socket) -> None:
    """Have a datagram socket take no packet that may have come through a router.

    Raises:
        OSError: this kernel knows no filters.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _PROGRAM)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(instructions))
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
