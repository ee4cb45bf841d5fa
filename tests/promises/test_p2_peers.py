"""P2 against peers of every kind: a small scale of the torture, and the oracle that counts its results."""

from __future__ import annotations

import pytest
from torture import peers
from torture.answers import GOOD, YES, chunked
from torture.oracle import Broken, Proof, proof, read


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_bad_peer_counts_as_a_delivery(capsys: pytest.CaptureFixture[str]) -> None:
    failed = peers.main(["--seed", "7", "--scale", "quick"])

    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", GOOD)
def test_the_oracle_accepts_a_good_response_and_no_cut_of_it(name: str) -> None:
    data, ending = GOOD[name]

    assert proof("metrics", data, closed=ending == "fin") is Proof.MUST
    for cut in range(len(data.rstrip(b"\n"))):
        assert proof("metrics", data[:cut], closed=True) is Proof.NO


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcd", b"ab"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", None),
        (b"HTTP/1.1 200 OK\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\nab", b""),
        (b"HTTP/1.1 103 A\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 103 A\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n" + chunked(b"abc"), b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", None),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\na", None),
        (b"HTTP/1.1 200 OK\r\nX: 1", None),
    ],
)  # fmt: skip
def test_the_oracle_reads_messages_as_the_rfc_does(data: bytes, body: bytes | None) -> None:
    if body is None:
        with pytest.raises(Broken):
            read(data, closed=True)
    else:
        assert read(data, closed=True).body == body


@pytest.mark.parametrize(
    ("status", "body", "proved"),
    [
        (b"200 OK", YES, Proof.MUST),
        (b"202 Accepted", YES, Proof.MAY),
        (b"302 Found", YES, Proof.NO),
        (b"500 Error", YES, Proof.NO),
        (b"200 OK", b"\xef\xbb\xbf" + YES, Proof.MAY),
        (b"200 OK", b'{"success": true, "x": NaN}', Proof.MAY),
        (b"200 OK", b'{"success": 1}', Proof.NO),
        (b"200 OK", b'{"success": false, "success": true}', Proof.NO),
        (b"200 OK", b"{}", Proof.NO),
    ],
)
def test_the_oracle_knows_the_shape_of_a_yes(status: bytes, body: bytes, proved: Proof) -> None:
    whole = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)

    assert proof("metrics", whole, closed=False) is proved
