#!/usr/bin/env python3
"""A small client of Tencent Cloud Archive Storage in Python's standard library.

Written from the wire contract alone, as a second opinion on the embedded store:
it shares no code with the Go client or the Go server.

    casclient.py --config FILE COMMAND ...

    ls | mk VAULT | rm VAULT | show VAULT | upload VAULT FILE [DESC]
    fill VAULT N    N archives with every kind of description that other tools write, see
                    describe(); prints for each: number, kind, ID, description in base64 ("-" for none)
    selftest        the whole contract against an empty account; exit 0 when it holds

FILE is in cascmd's INI format: [CASCredentials] endpoint, appid, secretid, secretkey.
"""

import argparse
import base64
import concurrent.futures
import configparser
import hashlib
import hmac
import http.client
import json
import socket
import sys
import time
import urllib.parse

MIB = 1 << 20


# --- hashes -------------------------------------------------------------

def linear_hash(data):
    return hashlib.sha256(data).hexdigest()


def combine(level):
    """Pairs digests up to the root; an odd last one is carried up."""
    while len(level) > 1:
        nxt = []
        for i in range(0, len(level), 2):
            if i + 1 < len(level):
                nxt.append(hashlib.sha256(level[i] + level[i + 1]).digest())
            else:
                nxt.append(level[i])
        level = nxt
    return level[0].hex()


def tree_hash(data):
    return combine([hashlib.sha256(data[i:i + MIB]).digest() for i in range(0, len(data), MIB)])


def combine_hex(hashes):
    return combine([bytes.fromhex(h) for h in hashes])


# --- signing ------------------------------------------------------------

def raw(value):
    """Text as UTF-8; bytes that are none are kept by surrogates."""
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def quote(value):
    return urllib.parse.quote(raw(value), safe="-_.~")


def lower_ascii(s):
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in s)


def fields(pairs):
    out = []
    for k, v in sorted(pairs.items()):
        out.append(quote(k) + "=" + quote(v) if v != "" else quote(k))
    return "&".join(out)


def mac(key, msg):
    return hmac.new(key.encode(), msg.encode(), hashlib.sha1).hexdigest()


def authorization(secret_id, secret_key, method, path, params, headers, now=None, expire=1200):
    now = int(time.time()) if now is None else now
    window = "%d;%d" % (now, now + expire)
    params = {k.strip().lower(): lower_ascii(str(v)) for k, v in params.items()}
    headers = {k.strip().lower(): v for k, v in headers.items()}
    text = "%s\n%s\n%s\n%s\n" % (method.lower(), path, fields(params), fields(headers))
    digest = hashlib.sha1(text.encode("utf-8")).hexdigest()
    signature = mac(mac(secret_key, window), "sha1\n%s\n%s\n" % (window, digest))
    return ("q-sign-algorithm=sha1&q-ak=%s&q-sign-time=%s&q-key-time=%s&q-header-list=%s&q-url-param-list=%s&q-signature=%s"
            % (secret_id, window, window, ";".join(sorted(headers)), ";".join(sorted(params)), signature))


# --- requests -----------------------------------------------------------

class Refused(Exception):
    def __init__(self, status, body):
        super().__init__("%d %s" % (status, body))
        self.status = status
        try:
            self.code = json.loads(body)["code"]
        except (ValueError, KeyError, TypeError):
            self.code = None


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        assert self.headers["content-type"] == "application/json", self.headers
        return json.loads(self.body)


class Client:
    def __init__(self, endpoint, appid, secret_id, secret_key):
        endpoint = endpoint.split("://")[-1]
        self.host, _, port = endpoint.partition(":")
        self.port = int(port or 80)
        self.uid, self.id, self.key = appid, secret_id, secret_key

    def path(self, *segments):
        return "/" + "/".join((self.uid,) + segments)

    def head(self, method, path, params, signed, unsigned):
        """The header lines of a request, as bytes: signed ones and Authorization."""
        auth = authorization(self.id, self.key, method, path, params, signed)
        lines = {k: v for k, v in signed.items() if k != "host"}
        lines.update(unsigned)
        lines["Authorization"] = auth
        # An ISO date is what the official SDK sends; it is not even legal HTTP.
        lines["Date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {k: raw(v) for k, v in lines.items()}

    def call(self, method, path, params=None, signed=None, unsigned=None, body=b"", want=None):
        params, signed, unsigned = params or {}, dict(signed or {}), dict(unsigned or {})
        signed.setdefault("host", self.host)  # bare, although the port is no default
        url = path
        if params:
            url += "?" + urllib.parse.urlencode(params, quote_via=urllib.parse.quote)
        conn = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            conn.putrequest(method, url, skip_accept_encoding=True)
            lines = self.head(method, path, params, signed, unsigned)
            lines.setdefault("Content-Length", b"%d" % len(body))
            if "content-length" in lines:
                del lines["Content-Length"]
            for k, v in lines.items():
                conn.putheader(k, v)
            conn.endheaders()
            conn.send(body)
            resp = conn.getresponse()
            data = resp.read()
            return self.check(resp.status, {k.lower(): v for k, v in resp.getheaders()}, data, want)
        finally:
            conn.close()

    @staticmethod
    def check(status, headers, data, want):
        assert headers.get("x-cas-requestid"), "no x-cas-requestid on %d" % status
        if not data:
            assert "content-type" not in headers, headers
        if status >= 400:
            assert headers["content-type"] == "application/json", headers
            raise Refused(status, data.decode())
        if want is not None:
            assert status == want, "status %d, want %d" % (status, want)
        return Reply(status, headers, data)

    # vaults
    def create_vault(self, v):
        return self.call("PUT", self.path("vaults", v), want=201).headers["location"]

    def delete_vault(self, v):
        self.call("DELETE", self.path("vaults", v), want=204)

    def describe_vault(self, v):
        return self.call("GET", self.path("vaults", v), want=200).json()

    def list_vaults(self, **params):
        return self.call("GET", self.path("vaults"), params, want=200).json()

    # archives
    def upload_headers(self, data, description=None):
        h = {"content-length": str(len(data)), "x-cas-content-sha256": linear_hash(data),
             "x-cas-sha256-tree-hash": tree_hash(data)}
        if description is not None:
            h["x-cas-archive-description"] = description
        return h

    def upload(self, v, data, description=None):
        r = self.call("POST", self.path("vaults", v, "archives"), signed=self.upload_headers(data, description),
                      body=data, want=201)
        assert r.headers["x-cas-sha256-tree-hash"] == tree_hash(data)
        return r.headers["x-cas-archive-id"]

    def delete_archive(self, v, archive):
        self.call("DELETE", self.path("vaults", v, "archives", archive), want=204)

    # multipart
    def initiate(self, v, part_size, description=""):
        h = {"x-cas-part-size": str(part_size)}
        if description:
            h["x-cas-archive-description"] = description
        return self.call("POST", self.path("vaults", v, "multipart-uploads"), signed=h, want=201).headers["x-cas-multipart-upload-id"]

    def upload_part(self, v, upload, offset, data, upper=False):
        h = self.upload_headers(data)
        if upper:  # cascmd sends, and signs, both hashes in upper case
            h = {k: s.upper() for k, s in h.items()}
        r = self.call("PUT", self.path("vaults", v, "multipart-uploads", upload), signed=h,
                      unsigned={"Content-Range": "bytes %d-%d/*" % (offset, offset + len(data) - 1)}, body=data, want=204)
        assert r.headers["x-cas-sha256-tree-hash"] == tree_hash(data), "hashes come back in lower case"

    def complete(self, v, upload, size, tree):
        return self.call("POST", self.path("vaults", v, "multipart-uploads", upload),
                         signed={"x-cas-archive-size": str(size), "x-cas-sha256-tree-hash": tree}, want=201).headers["x-cas-archive-id"]

    def abort(self, v, upload):
        self.call("DELETE", self.path("vaults", v, "multipart-uploads", upload), want=204)

    def list_parts(self, v, upload, **params):
        return self.call("GET", self.path("vaults", v, "multipart-uploads", upload), params, want=200).json()

    def list_uploads(self, v, **params):
        return self.call("GET", self.path("vaults", v, "multipart-uploads"), params, want=200).json()

    # jobs
    def start(self, v, **job):
        return self.call("POST", self.path("vaults", v, "jobs"), body=json.dumps(job).encode(), want=202).headers["x-cas-job-id"]

    def describe_job(self, v, job):
        return self.call("GET", self.path("vaults", v, "jobs", job), want=200).json()

    def list_jobs(self, v, **params):
        return self.call("GET", self.path("vaults", v, "jobs"), params, want=200).json()

    def wait(self, v, job):
        deadline = time.time() + 60
        while time.time() < deadline:
            d = self.describe_job(v, job)
            if d["Completed"]:
                return d
            time.sleep(0.05)
        raise TimeoutError(job)

    def output(self, v, job, first=None, last=None):
        h = {}
        if first is not None:
            h["range"] = "bytes=%d-%s" % (first, "" if last is None else last)
        return self.call("GET", self.path("vaults", v, "jobs", job, "output"), signed=h, want=206 if h else 200)


# --- other people's vaults ------------------------------------------------

def mt(version, i):
    """mt-aws-glacier: base64url of JSON without padding; mt1 encodes to UTF-8 twice."""
    text = json.dumps({"filename": "mt%d/第%d\nline.dat" % (version, i), "mtime": "20130102T030405Z"}, ensure_ascii=False).encode()
    if version == 1:
        text = text.decode("latin-1").encode()
    return "mt%d %s" % (version, base64.urlsafe_b64encode(text).decode().rstrip("="))


def utf7(text):
    return "".join(c if ord(c) < 128 and c != "+" else "+-" if c == "+" else
                   "+" + base64.b64encode(c.encode("utf-16-be")).decode().rstrip("=") + "-" for c in text)


KINDS = {
    "cascmd": lambda i: "/home/me/photos/%d/IMG_%05d.jpg" % (i % 97, i),
    "cascmd-relative": lambda i: "documents/%d/report %d.txt" % (i % 31, i),
    # cascmd cuts a path after 128 bytes, here within a character
    "cascmd-cut": lambda i: (("/数据/%06d/" % i).encode() + "很长的名字".encode() * 20)[:128],
    "none": lambda i: None,
    "empty": lambda i: "",
    "chinese": lambda i: "照片备份 第%d卷 (2019年夏)" % i,
    "invalid": lambda i: b"\xff\xfe bad \xe4\xb8 %d" % i,
    "passwd": lambda i: "../../etc/passwd",
    "escape": lambda i: "/var/../../../%d/../../x/..%d" % (i % 7, i),
    "dots": lambda i: [".", "..", "/", "a//b/./c/%d" % i, "...", "~/x%d" % i][i % 6],
    "windows": lambda i: "C:\\Users\\me\\file %d.txt" % i,
    "long": lambda i: ("%d" % i) + "x" * (1024 - len("%d" % i)),
    "deep": lambda i: ("%d" % i + "/d" * 1024)[:1024],
    "mt1": lambda i: mt(1, i),
    "mt2": lambda i: mt(2, i),
    "mt2-broken": lambda i: "mt2 %d!" % i,
    "fastglacier": lambda i: "<m><v>4</v><p>%s</p><lm>20140506T070809Z</lm></m>"
                   % base64.b64encode(("fast/夏 %d.txt" % i).encode()).decode(),
    "json": lambda i: json.dumps({"Path": utf7("c:\\云\\file+%d.txt" % i), "UTCDateModified": "20120926T211216Z"}),
    "json-broken": lambda i: '{"Path": %d' % i,
    "duplicate": lambda i: "backup.tar",
    "twice": lambda i: "the same again",  # and the same bytes
    "file-and-directory": lambda i: ["node/%d" % (i // 44), "node/%d/below" % (i // 44)][i // 22 % 2],
}


def describe(i):
    """Kind, description (text, bytes or None) and content of archive i."""
    kind = list(KINDS)[i % len(KINDS)]
    return kind, KINDS[kind](i), b"twice\n" if kind == "twice" else b"archive %d\n" % i


def fill_some(c, vault, numbers):
    out = []
    for i in numbers:
        kind, d, data = describe(i)
        if isinstance(d, bytes):
            d = d.decode("utf-8", "surrogateescape")
        archive = c.upload(vault, data, d)
        out.append("%d %s %s %s" % (i, kind, archive, "-" if d is None else base64.b64encode(raw(d)).decode()))
    return out


def fill(c, vault, n):
    c.create_vault(vault)
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        for lines in pool.map(fill_some, *zip(*[(c, vault, range(i, min(i + 100, n))) for i in range(0, n, 100)])):
            print("\n".join(lines))


# --- self-test ----------------------------------------------------------

def pattern(n):
    return (bytes(range(251)) * (n // 251 + 1))[:n]


def expect(code, status, call):
    try:
        call()
    except Refused as e:
        assert (e.code, e.status) == (code, status), e
    else:
        raise AssertionError("not refused: %s" % code)


def check_vectors():
    """The signature and tree hash vectors of the contract."""
    auth = authorization("AKIDexampleexampleexampleexample0000", "SKexampleSecretKey0123456789abcd",
                         "PUT", "/-/vaults/example", {}, {"host": "cas.ap-guangzhou.myqcloud.com"}, now=1510109254)
    assert auth.endswith("25acb11f57ceee92592c8510d6e48eb9aac2822c"), auth
    assert tree_hash(pattern(5 * MIB + 7)) == "39119a173a11e05648146d51f35437d6960dcfe76ddd40b818dce8fedcef76e3"


def two_hosts(c, vault):
    """A part as the official SDK sends it: two Host lines, the second one signed."""
    data = b"two hosts"
    upload = c.initiate(vault, MIB)
    path = c.path("vaults", vault, "multipart-uploads", upload)
    signed = dict(c.upload_headers(data), host=c.host)
    lines = c.head("PUT", path, {}, signed, {"Content-Range": "bytes 0-%d/*" % (len(data) - 1)})
    head = b"PUT %s HTTP/1.1\r\nHost: %s:%d\r\nAccept-Encoding: identity\r\n" % (path.encode(), c.host.encode(), c.port)
    items = list(lines.items())
    for k, v in items[:2]:
        head += k.encode() + b": " + v + b"\r\n"
    head += b"Host: " + c.host.encode() + b"\r\n"
    for k, v in items[2:]:
        head += k.encode() + b": " + v + b"\r\n"
    with socket.create_connection((c.host, c.port), timeout=60) as s:
        for _ in range(2):  # twice on one connection: the end of the body must be found
            s.sendall(head + b"\r\n" + data)
            resp = http.client.HTTPResponse(s)
            resp.begin()
            assert resp.status == 204, (resp.status, resp.read())
            assert resp.headers["x-cas-requestid"]
            resp.read()
    assert c.list_parts(vault, upload)["Parts"][0]["RangeInBytes"] == "0-8"
    c.abort(vault, upload)


def selftest(c):
    check_vectors()
    vault = "py.test_V-1"
    assert c.create_vault(vault).endswith("/vaults/" + vault)
    c.create_vault(vault)
    listed = c.list_vaults(limit="1")
    assert listed["Marker"] is None and [v["VaultName"] for v in listed["VaultList"]] == [vault], listed
    assert listed["VaultList"][0]["VaultQCS"].startswith("qcs:id/0:cas:")
    c.create_vault(vault + "b")
    page = c.list_vaults(limit="1")
    rest = c.list_vaults(limit="1", marker=page["Marker"])
    assert [v["VaultName"] for v in rest["VaultList"]] == [vault + "b"], rest
    c.delete_vault(vault + "b")
    expect("ResourceNotFoundException", 404, lambda: c.describe_vault(vault + "b"))
    expect("InvalidParameterValueException", 400, lambda: c.create_vault("no+plus"))

    # single upload, with a description in raw UTF-8
    desc = "照片/2019年 夏+秋 (1)~*'\"&=%;.jpg"
    small = "hello, 归档存储\n".encode()
    first = c.upload(vault, small, desc)
    assert len(first) == 128
    expect("BadRequest", 400, lambda: c.delete_vault(vault))
    bad = dict(c.upload_headers(small), **{"x-cas-sha256-tree-hash": "0" * 64})
    expect("InvalidDigest", 400, lambda: c.call("POST", c.path("vaults", vault, "archives"), signed=bad, body=small))
    expect("MissingParameterValueException", 400, lambda: c.call("POST", c.path("vaults", vault, "archives"), body=small))

    # multipart, parts out of order, hashes in upper case
    data = pattern(5 * MIB + 7)
    upload = c.initiate(vault, 2 * MIB, "multi")
    parts = [(o, data[o:o + 2 * MIB]) for o in range(0, len(data), 2 * MIB)]
    for o, p in reversed(parts):
        c.upload_part(vault, upload, o, p, upper=True)
    c.upload_part(vault, upload, 0, parts[0][1])
    up = c.list_uploads(vault)["UploadsList"]
    assert [u["MultipartUploadId"] for u in up] == [upload] and up[0]["ArchiveDescription"] == "multi"
    page = c.list_parts(vault, upload, limit="2")
    assert [p["RangeInBytes"] for p in page["Parts"]] == ["0-2097151", "2097152-4194303"], page
    page2 = c.list_parts(vault, upload, limit="2", marker=page["Marker"])
    assert page2["Marker"] is None and [p["RangeInBytes"] for p in page2["Parts"]] == ["4194304-5242886"]
    tree = combine_hex([p["SHA256TreeHash"] for p in page["Parts"] + page2["Parts"]])
    assert tree == tree_hash(data)
    expect("InvalidDigest", 400, lambda: c.complete(vault, upload, len(data), "0" * 64))
    multi = c.complete(vault, upload, len(data), tree)
    assert c.complete(vault, upload, len(data), tree) == multi
    expect("ResourceNotFoundException", 404, lambda: c.list_parts(vault, upload))
    two_hosts(c, vault)

    # inventory
    job = c.start(vault, Type="inventory-retrieval", InventoryRetrievalParameters={"Limit": "1"}, Description="归档")
    d = c.wait(vault, job)
    assert d["Action"] == "InventoryRetrieval" and d["JobDescription"] == "归档" and d["InventorySizeInBytes"] > 0
    inv = c.output(vault, job).json()["ArchiveList"]
    assert [(a["ArchiveId"], a["ArchiveDescription"], a["Size"]) for a in inv] == [(first, desc, len(small))], inv
    job = c.start(vault, Type="inventory-retrieval", InventoryRetrievalParameters={"Marker": d["InventoryRetrievalParameters"]["Marker"]})
    d = c.wait(vault, job)
    assert not d["InventoryRetrievalParameters"]["Marker"], d
    inv = c.output(vault, job).json()["ArchiveList"]
    assert [(a["ArchiveId"], a["SHA256TreeHash"]) for a in inv] == [(multi, tree)], inv

    # retrieval, whole and by verified ranges
    job = c.start(vault, Type="archive-retrieval", ArchiveId=multi, Tier="Expedited")
    d = c.wait(vault, job)
    assert d["StatusCode"] == "Succeeded" and d["SHA256TreeHash"] == tree and d["RetrievalByteRange"] == "0-5242886", d
    r = c.output(vault, job)
    assert r.body == data and r.headers["content-type"] == "application/octet-stream"
    hashes = []
    for o, p in parts:
        r = c.output(vault, job, o, o + len(p) - 1)
        assert r.body == p and r.headers["content-range"] == "bytes %d-%d/%d" % (o, o + len(p) - 1, len(data))
        assert r.headers["x-cas-sha256-tree-hash"] == tree_hash(p)
        hashes.append(r.headers["x-cas-sha256-tree-hash"])
    assert combine_hex(hashes) == tree
    assert c.output(vault, job, 4 * MIB).body == data[4 * MIB:]
    assert "x-cas-sha256-tree-hash" not in c.output(vault, job, 1, 5).headers
    expect("InvalidParameterValueException", 416, lambda: c.output(vault, job, len(data), len(data) + 5))
    job = c.start(vault, Type="archive-retrieval", ArchiveId=multi, RetrievalByteRange="4194304-")
    d = c.wait(vault, job)
    assert d["RetrievalByteRange"] == "4194304-5242886" and d["SHA256TreeHash"] == tree_hash(data[4 * MIB:])
    assert c.output(vault, job).body == data[4 * MIB:]
    expect("InvalidParameterValueException", 400, lambda: c.start(vault, Type="archive-retrieval", ArchiveId=multi, RetrievalByteRange="1-2"))
    jobs = c.list_jobs(vault, completed="True", statuscode="Succeeded", limit="50", marker="")
    assert len(jobs["JobList"]) == 4 and jobs["Marker"] is None

    # policy and notifications
    policy = json.dumps({"version": "2.0", "statement": [{"effect": "allow", "action": ["name/cas:InitiateJob"]}]})
    where = c.path("vaults", vault, "access-policy")
    expect("ResourceNotFoundException", 404, lambda: c.call("GET", where))
    c.call("PUT", where, body=json.dumps({"policy": policy}).encode(), want=204)
    assert c.call("GET", where, want=200).json() == {"policy": policy}
    c.call("DELETE", where, want=204)
    where = c.path("vaults", vault, "notification-configuration")
    conf = {"CallBackUrl": "http://127.0.0.1:9/", "Events": ["ArchiveRetrievalCompleted"]}
    c.call("PUT", where, body=json.dumps(conf).encode(), want=204)
    assert c.call("GET", where, want=200).json() == conf
    c.call("DELETE", where, want=204)
    expect("SerializationException", 400, lambda: c.call("PUT", where, body=b"{"))

    # signatures
    evil = Client("%s:%d" % (c.host, c.port), c.uid, c.id, "wrong")
    expect("InvalidSignatureException", 400, lambda: evil.list_vaults())
    expect("InvalidSignatureException", 400, lambda: evil.upload(vault, data))  # read to the end, then refused
    evil = Client("%s:%d" % (c.host, c.port), "1", c.id, c.key)
    expect("AccessDeniedException", 403, lambda: evil.list_vaults())
    assert Client("%s:%d" % (c.host, c.port), "-", c.id, c.key).describe_vault(vault)["VaultName"] == vault

    for a in (first, multi, multi):
        c.delete_archive(vault, a)
    c.delete_vault(vault)
    print("selftest ok")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--config", required=True)
    ap.add_argument("command")
    ap.add_argument("args", nargs="*")
    a = ap.parse_args()
    ini = configparser.ConfigParser()
    with open(a.config) as f:
        ini.read_file(f)
    s = ini["CASCredentials"]
    c = Client(s["endpoint"], s["appid"], s["secretid"], s["secretkey"])
    if a.command == "selftest":
        selftest(c)
    elif a.command == "ls":
        for v in c.list_vaults()["VaultList"]:
            print(v["VaultName"])
    elif a.command == "mk":
        print(c.create_vault(a.args[0]))
    elif a.command == "rm":
        c.delete_vault(a.args[0])
    elif a.command == "show":
        print(json.dumps(c.describe_vault(a.args[0]), indent=1))
    elif a.command == "fill":
        fill(c, a.args[0], int(a.args[1]))
    elif a.command == "upload":
        with open(a.args[1], "rb") as f:
            print(c.upload(a.args[0], f.read(), a.args[2] if len(a.args) > 2 else None))
    else:
        sys.exit("unknown command " + a.command)


if __name__ == "__main__":
    main()
