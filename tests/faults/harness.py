"""The operator without kopf and without waiting: events from the fake API, a set of keys, a clock that tests move."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

from faults.fake_api import CrashError, FakeApi, Json
from faults.world import Clock, World

from multimodal_api import labels
from multimodal_api.build import Progress
from multimodal_operator.apply import Writer
from multimodal_operator.inquiries import Inquiries
from multimodal_operator.kinds import CLAIM, RESOURCE, WATCHED_CHILDREN, Kind
from multimodal_operator.kube import Kube, KubeError
from multimodal_operator.mirror import Mirror
from multimodal_operator.observe import Observer
from multimodal_operator.operate import SELECTOR
from multimodal_operator.reconcile import Reconciler
from multimodal_operator.settings import Images

NAMESPACE = "test"
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
IMAGES = Images(builder="builder:1", server="server:1")
LIMIT = 2000
"""Steps until rest; more means that it never comes."""


class Silent:
    """A building pod that cannot be reached."""

    async def read(self, ip: str) -> Progress | None:
        assert ip
        return None


class Harness:
    """Cluster and operator together."""

    def __init__(self, *, seed: int = 0, drop: float = 0.0) -> None:
        self.clock = Clock(START)
        self.api = FakeApi(self.clock)
        self.world = World(self.api)
        self.random = random.Random(seed)  # noqa: S311 -- a repeatable order
        self.drop = drop
        """Part of the watch events that get lost, until the next full list."""
        self.restarts = 0
        self.settled_at = -1
        """Writes at the last rest: after one more full list nothing may be left to do."""
        self.events: list[tuple[str, Kind, Json]] = []
        self.api.watchers.append(lambda event, kind, obj: self.events.append((event, kind, obj)))
        self._new_process()

    def _new_process(self) -> None:
        self.kube = Kube(self.api)
        self.mirror = Mirror()
        self.due: dict[str, float] = {}
        observer = Observer(self.mirror, Inquiries(self.kube, Silent(), lambda: self.clock().timestamp()), IMAGES)
        self.reconciler = Reconciler(observer, Writer(self.kube, self.mirror, "test"), clock=self.clock)

    async def restart(self) -> None:
        """Start the operator anew: only what is in the cluster is left."""
        self.restarts += 1
        self.events.clear()
        self._new_process()
        await self.resync()

    async def resync(self) -> None:
        """List everything."""
        for kind in (RESOURCE, *WATCHED_CHILDREN):
            objs, version = await self.kube.list(kind, None, labels="" if kind is RESOURCE else SELECTOR)
            self.mirror.replace(kind, objs, version, None)
        for namespace, name in self.mirror.resources():
            self._enqueue(f"{namespace}/{name}")

    async def settle(self) -> None:
        """Let operator and world act in turn until neither has anything to do."""
        self.settled_at = -1
        for _step in range(LIMIT):
            try:
                moved = await self._operate()
            except CrashError:
                await self.restart()
                moved = True
            if not self.world.step() and not moved and not self.events:
                if self.drop and self.api.writes != self.settled_at:
                    self.settled_at = self.api.writes
                    await self.resync()
                    continue
                return
        raise AssertionError(f"no rest after {LIMIT} steps: {self.states()}")

    async def wait(self, seconds: float) -> None:
        """Let time pass, then settle."""
        self.clock.advance(seconds)
        await self.settle()

    async def _operate(self) -> bool:
        self._deliver()
        now = self.clock().timestamp()
        ready = sorted(key for key, at in self.due.items() if at <= now)
        if not ready:
            return False
        key = self.random.choice(ready)
        del self.due[key]
        namespace, _, name = key.partition("/")
        try:
            look_again = await self.reconciler.reconcile(namespace, name)
        except KubeError:
            look_again = 0.0
            self.clock.advance(1.0)  # the queue backs off; nothing else happens meanwhile
        if look_again is not None:
            self._enqueue(key, look_again)
        return True

    def _deliver(self) -> None:
        events, self.events = self.events, []
        for event, kind, obj in events:
            if kind is not RESOURCE and kind not in WATCHED_CHILDREN:
                continue
            ours = (obj["metadata"].get("labels") or {}).get(labels.LABEL_MANAGED_BY) == labels.MANAGED_BY
            known = self.mirror.get(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])
            if kind is not RESOURCE and not ours:
                event = "DELETED"  # noqa: PLW2901 -- it left the selector
            if (kind is not RESOURCE and not ours and known is None) or self.random.random() < self.drop:
                continue
            keys = self.mirror.drop(kind, obj) if event == "DELETED" else self.mirror.put(kind, obj)
            for namespace, name in keys:
                self._enqueue(f"{namespace}/{name}")

    def _enqueue(self, key: str, delay: float = 0.0) -> None:
        self.due[key] = min(self.due.get(key, float("inf")), self.clock().timestamp() + delay)

    # What tests do and ask

    def claim(self, name: str) -> None:
        """Make a claim as a user does."""
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.api.add(CLAIM, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})

    def create(self, name: str, spec: Json) -> None:
        """Create a resource as a user does."""
        self.api.add(RESOURCE, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})

    def edit(self, name: str, change: Json) -> None:
        """Edit a resource's spec as a user does, by merge patch."""
        self.api.edit(RESOURCE, NAMESPACE, name, {"spec": change})

    def delete(self, name: str) -> None:
        """Delete a resource as a user does."""
        self.api.delete(RESOURCE, NAMESPACE, name)

    def status(self, name: str) -> Json:
        """Give a resource's status."""
        obj = self.api.find(RESOURCE, NAMESPACE, name)
        assert obj is not None
        found: Json = obj.get("status", {})
        return found

    def condition(self, name: str, duty: str) -> Json:
        """Give one condition."""
        return next(item for item in self.status(name)["conditions"] if item["type"] == duty)

    def states(self) -> dict[str, Any]:
        """Sum up, for messages."""
        found = {obj["metadata"]["name"]: obj.get("status", {}).get("conditions", ()) for obj in self.api.all(RESOURCE)}
        return {name: [(c["type"], c["status"], c["reason"]) for c in conditions] for name, conditions in found.items()}


def spec(**changes: Any) -> Json:
    """Give a specification for the CPU, with changes at its top."""
    base: Json = {
        "numGpus": 0,
        "model": {"type": "neva", "visualCheckpoint": {"pvc": {"claimName": "checkpoints", "path": "neva.nemo"}}},
    }
    return base | changes
