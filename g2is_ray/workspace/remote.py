"""Files behind any URL, by fsspec: how a URL is opened, and what is wrong when a store refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from fsspec.core import url_to_fs

_BUCKETS = re.compile(r"(s3|s3a|gs|gcs|az|abfs|abfss)://(?P<bucket>[^/]*)")
_TRIES = 2  # of s3fs, each of several by botocore, with a limit on the seconds of each
_REDIRECTS = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint")


def normal_url(url: str) -> str:
    """The URL with the names of its kinds in lower case, as fsspec knows them: S3:// is s3://."""
    return re.sub(r"(?:^|(?<=::))[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda m: m[0].lower(), url)


def open_url(url: str, **options: Any) -> tuple[Any, str]:
    """The file system behind a path or URL, and the path in it.

    Environment and configuration files of fsspec and of the store's library count; a store that
    does not answer is given up after some tries.

    Raises:
        ValueError: the kind of storage is unknown, or a bucket has no name.
        ImportError: it needs a package.
    """
    url = normal_url(url)
    if (found := _BUCKETS.match(url)) and not found["bucket"]:
        raise ValueError(f"it names no bucket; write {found[1]}://BUCKET/PATH")
    fs, path = url_to_fs(url, **options)
    if "s3" in fs.protocol:
        fs.retries = min(fs.retries, _TRIES)
    return fs, path


def reason(error: BaseException, url: str) -> str:
    """Why a store refused, in a few words."""
    responses = [one.response for one in _causes(error) if isinstance(_response(one), dict)]
    for response in responses:
        facts = response.get("ResponseMetadata", {})
        code = str(response.get("Error", {}).get("Code", ""))
        if facts.get("HTTPStatusCode") in (301, 307) or code in _REDIRECTS:
            headers = facts.get("HTTPHeaders", {})
            return _elsewhere(url, headers.get("x-amz-bucket-region", ""))
    if any(isinstance(one, RecursionError) for one in _causes(error)):
        return _elsewhere(url, "")  # botocore asks for the region, and is redirected again
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return text or type(error).__name__


def _elsewhere(url: str, region: str) -> str:
    found = _BUCKETS.match(url)
    bucket = found["bucket"] if found else url
    asked = os.environ.get("AWS_DEFAULT_REGION", "") or "the default region"
    where = f"the region {region}" if region else "another region"
    return (
        f"the bucket {bucket} is in {where}, but it was looked for in {asked}; set "
        f"AWS_DEFAULT_REGION to {region or 'the region of the bucket'}"
    )


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)  # botocore's ClientError


def _causes(error: BaseException) -> Iterator[Any]:
    """The error, and those that it came from."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen and len(seen) < 10:
        seen.append(at)
        yield at
        at = at.__cause__ or at.__context__
