"""The reasons to reject a connection or a request: one word each, for logs, ``status`` and metrics.

Pure and light to import; they are raised, counted and reported elsewhere.
"""

from __future__ import annotations

import enum


class RejectReason(enum.StrEnum):
    """The bound that was met, or the rule; most are named after the variable that sets them."""

    DENIED = "denied"  # the client's address may not use this server
    DRAINING = "draining"  # the server takes nothing new
    CONNECTIONS = "connections"
    ADDRESS_CONNECTIONS = "address_connections"
    TOTAL_CONNECTIONS = "total_connections"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    REQUEST_TIMEOUT = "request_timeout"
    TLS_RECORDS = "tls_records"
    REQUEST_SIZE = "request_size"
    QUEUE_LENGTH = "queue_length"
    QUEUE_TIMEOUT = "queue_timeout"
    COMPILE_TIMEOUT = "compile_timeout"
    OUTPUT_SIZE = "output_size"
    TEMP_SIZE = "temp_size"
    TOTAL_TEMP_SIZE = "total_temp_size"
    ANSWER_SIZE = "answer_size"
    MEMORY = "memory"
    SEND_TIMEOUT = "send_timeout"
