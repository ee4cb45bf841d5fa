"""Real trainings of the ultralytics package under a hub that is down half the time, each killed once and resumed.

    make test-ultralytics

Each training is a separate process, in an environment with torch and one version of the package. After its end, when
everything is delivered, the sandbox must have exactly what the trainer produced: every epoch's metrics with the same
numbers, the final weights byte for byte, and no checkpoint that the trainer did not write. With a bucket, it is the bucket that
is down half the time, and another home resumes from what `hubqueue pull` gets out of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from trainings.on_bucket import BucketTraining
from trainings.on_platform import PlatformTraining, compared_with_the_package
from trainings.training import OUTAGE, SEED, Case, Failed, Training

CASES = (
    Case("8.2.70", "drop-in"),
    Case("8.2.70", "drop-in", from_hub=True),
    Case("8.3.253", "drop-in"),
    Case("8.3.253", "drop-in", from_hub=True),
    Case("8.2.70", "attach"),
    Case("8.3.253", "attach"),
    Case("8.4.190", "attach"),
    Case("8.4.190", "attach", platform=True),
    Case("8.4.190", "attach", platform=True, bucket=True),
)


def main(chosen: list[str]) -> int:
    """Run the cases whose title contains all given words. Returns the number of failures."""
    failed = 0
    print(
        f"seed {SEED}; the hub is {OUTAGE:g} s up and {OUTAGE:g} s down; each training is killed once and resumed"
    )
    for case in CASES:
        if any(word not in case.title for word in chosen):
            continue
        with tempfile.TemporaryDirectory(prefix="hubqueue-training-") as folder:
            kind = BucketTraining if case.bucket else PlatformTraining if case.platform else Training
            started, training = time.monotonic(), kind(case, Path(folder))
            try:
                said = f"ok      {training.run()}"
            except (Failed, AssertionError) as error:
                failed += 1
                said = f"FAILED  {error}\n{training.output()}"
            finally:
                training.close()
            print(f"{case.title:28} {said}  [{time.monotonic() - started:.0f} s]", flush=True)
    if not chosen or chosen == ["compare"]:
        try:
            print(compared_with_the_package("8.4.190"))
        except Failed as error:
            failed += 1
            print(f"FAILED  {error}")
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
