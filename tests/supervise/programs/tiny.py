"""`tiny.py --port N`: the least that a supervisor takes for an engine, which starts in a moment.

It answers one request after the other: /health, /metrics, and a token for each completion.
"""

import socket
import sys

TOKEN = b'{"choices": [{"text": "a"}]}'


def request(connection: socket.socket) -> bytes:
    """The path that is asked for, once all of the request is here."""
    read = b""
    while b"\r\n\r\n" not in read and (more := connection.recv(65536)):
        read += more
    head, _, body = read.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return (head.split() or [b"", b""])[1]


def main() -> None:
    port, tokens = int(sys.argv[sys.argv.index("--port") + 1]), 0
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                path = request(connection)
                tokens += path.startswith(b"/v1/")
                page = b"vllm:num_requests_running 0\nvllm:generation_tokens_total %d\n" % tokens
                body = page if path == b"/metrics" else TOKEN
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


if __name__ == "__main__":
    main()
