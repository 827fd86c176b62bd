"""Why a store refused a request, from the few words of its answer that are safe to repeat."""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Final

import aiohttp

from worker.media.dial import is_temporary_status

# An error of S3 has under 2 kB, its code in front; a store that sends more, or slowly, is cut off.
ANSWER_BYTES: Final = 16 * 1024
ANSWER_S: Final = 5.0
CODE: Final = re.compile(rb"<Code>\s*([A-Z][A-Za-z0-9]{1,63})\s*</Code>")
REGION_WORD: Final = re.compile(r"(?=.{1,63}\Z)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
NAMED_REGION: Final = re.compile(rb"<Region>\s*([A-Za-z0-9-]+)\s*</Region>")
REGION_HEADER: Final = "x-amz-bucket-region"
CALLER_ERRORS: Final = range(400, 500)
# Codes that mean "later" whatever their status, as botocore retries them (retries/standard.py), and
# OperationAborted (409), which Amazon's list of error codes asks to send again.
LATER_CODES: Final = frozenset(
    {
        *("BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException"),
        *("OperationAborted", "PriorRequestNotComplete", "ProvisionedThroughputExceededException"),
        *("RequestLimitExceeded", "RequestThrottled", "RequestThrottledException"),
        *("RequestTimeout", "RequestTimeoutException", "SlowDown", "ThrottledException"),
        *("Throttling", "ThrottlingException", "TooManyRequestsException"),
        "TransactionInProgressException",
    }
)
# What a store cannot do it answers with a 5xx, and always will.
NEVER_CODES: Final = frozenset({"NotImplemented"})
CLOCK_CODES: Final = frozenset({"RequestTimeTooSkewed"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A store's answer to a request that it did not carry out.

    `code` is the store's own word for the reason, such as AccessDenied; `region` is the one that
    the request should have been signed for, if the store names one.
    """

    status: int
    code: str | None = None
    region: str | None = None

    @property
    def message(self) -> str:
        """The refusal in words that may be shown to the caller."""
        code = "" if self.code is None else f" ({self.code})"
        return f"the store answered with status {self.status}{code}"

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may later get a different answer."""
        if self.code in LATER_CODES:
            return True
        return self.code not in NEVER_CODES and is_temporary_status(self.status)

    @property
    def is_of_clock(self) -> bool:
        """Whether the clock of the machine that signed the request is at fault."""
        return self.code in CLOCK_CODES


async def read_refusal(response: aiohttp.ClientResponse) -> Refusal:
    """Read why `response` is no success: its status, and a code and a region if it has them.

    The store may be anyone's, so at most ANSWER_BYTES are read, for at most ANSWER_S, and only a
    single word of letters and digits is taken out of them. A region counts only in an answer that
    says that the request is at fault.
    """
    answer = await read_start(response)
    code = CODE.search(answer)
    named = NAMED_REGION.search(answer)
    region = response.headers.get(REGION_HEADER, "") if named is None else named[1].decode()
    is_region = response.status in CALLER_ERRORS and REGION_WORD.fullmatch(region)
    return Refusal(
        response.status,
        None if code is None else code[1].decode(),
        region if is_region else None,
    )


async def read_start(response: aiohttp.ClientResponse) -> bytes:
    """Return the first ANSWER_BYTES of an answer, or what of them came within ANSWER_S."""
    start = bytearray()
    with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
        async with asyncio.timeout(ANSWER_S):
            while left := ANSWER_BYTES - len(start):
                part = await response.content.read(left)
                if not part:
                    break
                start += part
    return bytes(start)
