"""The object store's HTTP side: the requests of S3 and of OSS that our code makes, and their errors."""

from __future__ import annotations

import base64
import hashlib
import zlib
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.lab.store_signatures import BadSignature, Signed

if TYPE_CHECKING:
    from tests.lab.object_store import Credential, ObjectStore, Stored

PIECE = 65536  # bytes written at a time
PROPERTIES = frozenset({"acl", "encryption", "policy", "publicAccessBlock", "tagging"})  # of a bucket, by query


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class StoreApi(BaseHTTPRequestHandler):
    store: ClassVar[ObjectStore]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        self._status = 0
        self._who: Credential | None = None
        path, _, self._query = self.path.partition("?")
        self._bucket, self._key = self._place(path)
        self._args = {name: values[0] for name, values in parse_qs(self._query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._check(path, body)
            self._act(self._plain(body))
        except _Refused as refused:
            self._refuse(refused)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        access_key = self._who.access_key if self._who else None
        self.store.note(self.command, self._bucket, self._key, self._query, self._status, access_key)

    def _place(self, path: str) -> tuple[str, str]:
        host = (self.headers.get("Host") or "").partition(":")[0]
        for name in self.store.buckets:
            if host.startswith(f"{name}."):
                return name, unquote(path[1:])
        bucket, _, key = path[1:].partition("/")
        return unquote(bucket), unquote(key)

    def _check(self, path: str, body: bytes) -> None:
        faults = self.store.faults
        if faults.busy > 0:
            faults.busy -= 1
            raise _Refused(503, "SlowDown", "reduce your request rate")
        headers = {name.lower(): value for name, value in self.headers.items()}
        signed = Signed(self.command, path, self._query, headers, self._bucket, self._key)
        try:
            who = self.store.credentials.get(signed.access_key)
            if who is None:
                raise _Refused(403, "InvalidAccessKeyId")
            if who.token != signed.session_token:
                raise _Refused(403, "InvalidToken", "the session token is missing or wrong")
            signed.check(who.secret, self.store.region)
        except BadSignature as error:
            raise _Refused(403, error.code, str(error)) from None
        if faults.refuse_all is not None:
            raise _Refused(403, faults.refuse_all)
        if faults.closed_to and self._key:
            access_key, prefix = faults.closed_to
            if who.access_key == access_key and self._bucket.startswith(prefix):
                raise _Refused(
                    403, "PublicEndpointForbidden", "The bucket you access does not belong to this endpoint."
                )
        self._who = who
        digest = headers.get("x-amz-content-sha256", "")
        if len(digest) == 64 and digest != hashlib.sha256(body).hexdigest():
            raise _Refused(400, "XAmzContentSHA256Mismatch")
        md5 = headers.get("content-md5")
        if md5 and base64.b64decode(md5) != hashlib.md5(body).digest():
            raise _Refused(400, "InvalidDigest")

    def _plain(self, body: bytes) -> bytes:
        """The content of a body in aws-chunked form; its trailing CRC32 is checked."""
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return body
        found = b""
        while True:
            line, _, body = body.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            found, body = found + body[:size], body[size + 2 :]
        name, _, value = body.strip().decode().partition(":")
        if name == "x-amz-checksum-crc32" and value != _crc32(found):
            raise _Refused(400, "BadDigest")
        return found

    def _act(self, body: bytes) -> None:
        if not self._bucket:
            return self._list_buckets()
        if self.command == "PUT" and not self._key:
            return self._put_bucket()
        objects = self.store.buckets.get(self._bucket)
        if objects is None:
            raise _Refused(404, "NoSuchBucket")
        if not self._key:
            return self._act_on_bucket(objects, body)
        actions = {"GET": self._get, "HEAD": self._get, "PUT": self._put, "POST": self._post, "DELETE": self._delete}
        return actions[self.command](objects, body)

    def _list_buckets(self) -> None:
        if self.command != "GET":
            raise _Refused(405, "MethodNotAllowed")
        self._may("listing", "")
        region, prefix = self.store.region, self._args.get("prefix", "")
        place = f"<BucketRegion>{region}</BucketRegion><Region>{region}</Region><Location>{region}</Location>"
        rows = "".join(
            f"<Bucket><Name>{name}</Name>{place}<CreationDate>2026-01-01T00:00:00.000Z</CreationDate></Bucket>"
            for name in sorted(self.store.buckets)
            if name.startswith(prefix)
        )
        self._send_xml("ListAllMyBucketsResult", f"<IsTruncated>false</IsTruncated><Buckets>{rows}</Buckets>")

    def _put_bucket(self) -> None:
        """A new bucket, or a property of one that exists: its tags, encryption and access are taken and not kept."""
        self._may("write", "")
        if PROPERTIES.isdisjoint(self._args):
            self.store.create_bucket(self._bucket)
        elif self._bucket not in self.store.buckets:
            raise _Refused(404, "NoSuchBucket")
        self._send(200)

    def _act_on_bucket(self, objects: dict[str, Stored], body: bytes) -> None:
        if self.command == "POST" and "delete" in self._args:
            return self._delete_many(objects, body)
        if self.command == "DELETE":
            self._may("delete", "")
            if objects:
                raise _Refused(409, "BucketNotEmpty")
            del self.store.buckets[self._bucket]
            return self._send(204)
        if self.command == "HEAD":
            return self._send(200)
        if "versions" in self._args:
            return self._list_versions()
        return self._list_uploads() if "uploads" in self._args else self._list(objects)

    def _list_versions(self) -> None:
        """Nothing here has more than one."""
        self._may("listing", "")
        rows = "".join(
            f"<Version><Key>{escape(key)}</Key><VersionId>null</VersionId><IsLatest>true</IsLatest></Version>"
            for key in self.store.keys(self._bucket)
        )
        self._send_xml("ListVersionsResult", f"<IsTruncated>false</IsTruncated>{rows}")

    def _list_uploads(self) -> None:
        prefix = self._args.get("prefix", "")
        self._may("listing", prefix)
        with self.store.lock:
            open_ones = {upload: self.store.upload_keys[upload] for upload in self.store.uploads}
        items = "".join(
            f"<Upload><Key>{quote(key)}</Key><UploadId>{upload}</UploadId></Upload>"
            for upload, (bucket, key) in open_ones.items()
            if bucket == self._bucket and key.startswith(prefix)
        )
        self._send_xml(
            "ListMultipartUploadsResult", f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{items}"
        )

    def _list(self, objects: dict[str, Stored]) -> None:
        prefix = self._args.get("prefix", "")
        self._may("listing", prefix)
        after = self._args.get("continuation-token") or self._args.get("start-after") or ""
        most = int(self._args.get("max-keys") or 1000)
        names = [key for key in self.store.keys(self._bucket, prefix) if key > after]
        items = "".join(
            f"<Contents><Key>{quote(key)}</Key><ETag>&quot;{self._etag(objects[key])}&quot;</ETag>"
            f"<Size>{len(objects[key].data)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in names[:most]
        )
        more = len(names) > most
        token = f"<NextContinuationToken>{quote(names[most - 1])}</NextContinuationToken>" if more else ""
        self._send_xml(
            "ListBucketResult",
            f"<Name>{self._bucket}</Name><Prefix>{quote(prefix)}</Prefix><EncodingType>url</EncodingType>"
            f"<MaxKeys>{most}</MaxKeys><KeyCount>{len(names[:most])}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}",
        )

    def _get(self, objects: dict[str, Stored], _body: bytes) -> None:
        if "uploadId" in self._args:
            return self._list_parts()
        self._may("read", self._key)
        found = objects.get(self._key)
        if found is None:
            raise _Refused(404, "NoSuchKey") if self._allowed("listing", "") else _Refused(403, "AccessDenied")
        if (wanted := self.headers.get("If-Match")) and wanted.strip('"').lower() != found.etag:
            raise _Refused(412, "PreconditionFailed")
        start, end = self._range(len(found.data))
        partial = (start, end) != (0, len(found.data))
        headers = {"ETag": f'"{self._etag(found)}"', "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(found.data)}"
        headers |= self._checksums(found, partial)
        self._send(206 if partial else 200, headers=headers)
        if self.command == "GET":
            data = b"X" + found.data[1:] if self._key in self.store.faults.damaged else found.data
            self._send_body(data, start, end)
        return None

    def _range(self, size: int) -> tuple[int, int]:
        asked = self.headers.get("Range")
        if not asked:
            return 0, size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if start < end:
            return start, end
        if self._is_oss and self.headers.get("x-oss-range-behavior") != "standard":
            return 0, size
        raise _Refused(416, "InvalidRange")

    def _send_body(self, data: bytes, start: int, end: int) -> None:
        store, faults = self.store, self.store.faults
        afflicted = not faults.keys or self._key in faults.keys
        stop = end
        if afflicted and faults.cut_after is not None and end - start > faults.cut_after:
            stop, self.close_connection = start + faults.cut_after, True
        position = start
        with store.lock:
            store.sending += 1
        try:
            while position < stop and not store.stopped.is_set():
                piece = data[position : min(position + PIECE, stop)]
                self.wfile.write(piece)
                position += len(piece)
                if afflicted and faults.bytes_per_s:
                    store.stopped.wait(len(piece) / faults.bytes_per_s)
        finally:
            with store.lock:
                store.sending -= 1
                store.served[f"{self._bucket}/{self._key}"].append((start, position))

    def _put(self, objects: dict[str, Stored], body: bytes) -> None:
        self._may("write", self._key)
        if upload := self._args.get("uploadId"):
            with self.store.lock:
                self._upload(upload)[int(self._args["partNumber"])] = body
            return self._send(200, headers=self._answer(self.store.stored(body)))
        crc32 = self.headers.get("x-amz-checksum-crc32")
        if crc32 and crc32 != _crc32(body):
            raise _Refused(400, "BadDigest")
        stored = self.store.stored(body, crc32=crc32)
        with self.store.lock:
            objects[self._key] = stored
        return self._send(200, headers=self._answer(stored))

    def _post(self, objects: dict[str, Stored], body: bytes) -> None:
        self._may("write", self._key)
        if "uploads" in self._args:
            with self.store.lock:
                upload = f"upload-{len(self.store.upload_keys) + 1}"
                self.store.uploads[upload] = {}
                self.store.upload_keys[upload] = (self._bucket, self._key)
            place = f"<Bucket>{self._bucket}</Bucket><Key>{escape(self._key)}</Key>"
            return self._send_xml("InitiateMultipartUploadResult", f"{place}<UploadId>{upload}</UploadId>")
        upload = self._args["uploadId"]
        with self.store.lock:
            parts = self._upload(upload)
            numbers = [
                int(item.text or 0) for item in ElementTree.fromstring(body).iter() if _tag(item) == "PartNumber"
            ]
            if numbers != sorted(numbers) or not set(numbers) <= set(parts):
                raise _Refused(400, "InvalidPart")
            data = b"".join(parts[number] for number in numbers)
            digest = hashlib.md5(b"".join(hashlib.md5(parts[number]).digest() for number in numbers)).hexdigest()
            stored = objects[self._key] = self.store.stored(data, etag=f"{digest}-{len(numbers)}")
            del self.store.uploads[upload]
        place = f"<Bucket>{self._bucket}</Bucket><Key>{escape(self._key)}</Key>"
        content = f"{place}<ETag>&quot;{self._etag(stored)}&quot;</ETag>"
        return self._send_xml("CompleteMultipartUploadResult", content, self._answer(stored))

    def _list_parts(self) -> None:
        self._may("write", self._key)
        parts = self._upload(self._args["uploadId"])
        items = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            f"<Size>{len(data)}</Size></Part>"
            for number, data in sorted(parts.items())
        )
        self._send_xml("ListPartsResult", f"<IsTruncated>false</IsTruncated>{items}")

    def _delete(self, objects: dict[str, Stored], _body: bytes) -> None:
        if upload := self._args.get("uploadId"):
            self._may("write", self._key)
            with self.store.lock:
                self.store.uploads.pop(upload, None)
        else:
            self._may("delete", self._key)
            with self.store.lock:
                objects.pop(self._key, None)
        self._send(204)

    def _delete_many(self, objects: dict[str, Stored], body: bytes) -> None:
        for item in ElementTree.fromstring(body).iter():
            if _tag(item) == "Key":
                key = item.text or ""
                self._may("delete", key)
                with self.store.lock:
                    objects.pop(key, None)
        self._send_xml("DeleteResult", "")

    def _upload(self, upload: str) -> dict[int, bytes]:
        try:
            return self.store.uploads[upload]
        except KeyError:
            raise _Refused(404, "NoSuchUpload") from None

    def _allowed(self, action: str, key: str) -> bool:
        assert self._who is not None
        return any(key.startswith(prefix) for prefix in getattr(self._who, action))

    def _may(self, action: str, key: str) -> None:
        if not self._allowed(action, key):
            raise _Refused(403, "AccessDenied", f"{action} of {key!r}")

    @property
    def _is_oss(self) -> bool:
        return (self.headers.get("Authorization") or "").startswith("OSS4")

    def _etag(self, stored: Stored) -> str:
        return stored.etag.upper() if self._is_oss else stored.etag

    def _checksums(self, stored: Stored, partial: bool) -> dict[str, str]:
        if self._is_oss:
            return {"x-oss-hash-crc64ecma": str(stored.crc64)}
        if stored.crc32 and not partial and self.headers.get("x-amz-checksum-mode"):
            return {"x-amz-checksum-crc32": stored.crc32, "x-amz-checksum-type": "FULL_OBJECT"}
        return {}

    def _answer(self, stored: Stored) -> dict[str, str]:
        return {"ETag": f'"{self._etag(stored)}"', **self._checksums(stored, partial=True)}

    def _refuse(self, refused: _Refused) -> None:
        data = f"<Error><Code>{refused.code}</Code><Message>{escape(str(refused))}</Message></Error>".encode()
        headers = {"Content-Type": "application/xml"}
        if self._is_oss:
            headers["x-oss-err"] = base64.b64encode(data).decode()
        self._send(refused.status, data, headers)

    def _send_xml(self, root: str, content: str, headers: dict[str, str] | None = None) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{root}>{content}</{root}>'
        self._send(200, text.encode(), {"Content-Type": "application/xml", **(headers or {})})

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "x-oss-request-id": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _tag(item: ElementTree.Element) -> str:
    return item.tag.rpartition("}")[2]
