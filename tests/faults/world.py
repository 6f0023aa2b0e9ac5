"""What the rest of a cluster does to the objects: volumes bind, Jobs run pods, Deployments roll, owners' children go.

One `step` is one small change, so that the operator sees every state in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from faults.fake_api import FakeApi, Json

from multimodal_api import labels
from multimodal_api.build import BuildReport, Outcome, Stage
from multimodal_api.errors import Failure
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, EVENT, JOB, POD
from multimodal_operator.snapshot import Purpose


@dataclass
class World:
    """The other controllers, and what builds and servers do."""

    api: FakeApi
    failures: dict[str, Failure] = field(default_factory=dict)
    """Engine key → why its build fails."""
    engines: set[tuple[str, str]] = field(default_factory=set)
    """(claim's uid, key) of whole engines in stores."""
    builds: list[str] = field(default_factory=list)
    """Keys whose build did work, in order."""
    stuck: set[str] = field(default_factory=set)
    """Components whose pods do not start: the scheduler finds no node."""
    broken: set[str] = field(default_factory=set)
    """Keys whose servers end at once."""
    served: list[frozenset[str]] = field(default_factory=list)
    """Keys that answered, after every change."""

    def step(self) -> bool:
        """Do one thing; False when there is nothing to do."""
        self.api.collect_garbage()
        done = any(act() for act in (self._bind, self._start_jobs, self._run_builds, self._roll, self._start_servers))
        now = frozenset(
            pod["metadata"]["labels"][labels.LABEL_ENGINE_KEY] for pod in self._pods("serving") if _ready(pod)
        )
        if not self.served or self.served[-1] != now:
            self.served.append(now)
        return done

    def _bind(self) -> bool:
        for claim in self.api.all(CLAIM):
            if claim.get("status", {}).get("phase") != "Bound":
                self._edit(CLAIM, claim, {"status": {"phase": "Bound"}})
                return True
        return False

    def _start_jobs(self) -> bool:
        for job in self.api.all(JOB):
            if job.get("status", {}).get("startTime"):
                continue
            if "pods" in self.api.quota:
                if self._complain(job):
                    return True
                continue
            self._edit(JOB, job, {"status": {"startTime": self._stamp(), "active": 1}})
            self._pod(job, f"{job['metadata']['name']}-{job['metadata']['uid'][4:]}")
            return True
        return False

    def _complain(self, job: Json) -> bool:
        """Tell of pods that are refused, once, in an event as the Job controller does."""
        meta = {"name": f"{job['metadata']['name']}.refused", "namespace": job["metadata"]["namespace"]}
        if self.api.find(EVENT, meta["namespace"], meta["name"]):
            return False
        regarding = {"kind": "Job", "name": job["metadata"]["name"]}
        note = "Error creating: pods is forbidden: exceeded quota: pods"
        self.api.add(EVENT, {"metadata": meta, "regarding": regarding, "reason": "FailedCreate", "note": note})
        return True

    def _run_builds(self) -> bool:
        for pod in self._pods(*Purpose):
            status = pod.get("status", {})
            component = pod["metadata"]["labels"][labels.LABEL_COMPONENT]
            if status.get("phase") in {"Succeeded", "Failed"}:
                continue
            if component in self.stuck:
                if not status.get("conditions"):
                    self._edit(POD, pod, {"status": _unscheduled()})
                    return True
                continue
            if status.get("phase") != "Running":
                self._edit(POD, pod, {"status": _running(ready=False)})
                return True
            self._finish(pod)
            return True
        return False

    def _finish(self, pod: Json) -> None:
        owner = pod["metadata"]["ownerReferences"][0]["name"]
        job = self.api.find(JOB, pod["metadata"]["namespace"], owner)
        if job is None:
            return
        report = self._build(pod, job)
        code = 0 if report.failure is None else 3
        ended = {"exitCode": code, "message": report.model_dump_json(by_alias=True, exclude_none=True)}
        ended["finishedAt"] = self._stamp()
        state = {"phase": "Failed" if code else "Succeeded"}
        containers = [{"name": "builder", "state": {"terminated": ended}}]
        self._edit(POD, pod, {"status": {**state, "containerStatuses": containers}})
        condition = {"type": "Failed" if code else "Complete", "status": "True", "lastTransitionTime": self._stamp()}
        if code:
            condition |= {"reason": "PodFailurePolicy", "message": "the container refused"}
        status: Json = {"conditions": [condition], "active": 0}
        status |= {"failed": 1} if code else {"succeeded": 1, "completionTime": self._stamp()}
        self._edit(JOB, job, {"status": status})

    def _build(self, pod: Json, job: Json) -> BuildReport:
        args = pod["spec"]["containers"][0]["args"]
        key, claim = args[args.index("--key") + 1], self._store(pod)
        if (claim, key) in self.engines:
            return BuildReport(key=key, outcome=Outcome.FOUND, stage=Stage.INSPECT, size_bytes=7)
        failure = self.failures.get(key)
        if "--expect-engine" in args:
            failure = Failure(reason="EngineNotFound", at=key, problem="it is not there", remedy="build it")
        if failure is not None:
            return BuildReport(key=key, outcome=Outcome.FAILED, stage=Stage.INSPECT, failure=failure)
        if "--stop-after" in args:
            return BuildReport(key=key, outcome=Outcome.INSPECTED, stage=Stage.INSPECT)
        self.builds.append(key)
        kept = set(args[args.index("--keep") + 1 :]) if "--keep" in args else None
        if kept is not None:
            self.engines = {(uid, name) for uid, name in self.engines if uid != claim or name in kept}
        self.engines.add((claim, key))
        assert job["metadata"]["labels"][labels.LABEL_ENGINE_KEY] == key
        return BuildReport(key=key, outcome=Outcome.PUBLISHED, stage=Stage.PUBLISH, size_bytes=7)

    def _store(self, pod: Json) -> str:
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        name = volumes[mounts["/engines"]]["persistentVolumeClaim"]["claimName"]
        claim = self.api.find(CLAIM, pod["metadata"]["namespace"], name)
        assert claim is not None, f"pod {pod['metadata']['name']} mounts claim {name}, which does not exist"
        return str(claim["metadata"]["uid"])

    def _roll(self) -> bool:
        ours = (obj for obj in self.api.all(DEPLOYMENT) if "template" in obj["spec"])
        return any(self._roll_one(deployment) for deployment in ours)

    def _roll_one(self, deployment: Json) -> bool:
        """Make one new pod or end one old one, within surge and unavailability; then report."""
        spec, uid = deployment["spec"], deployment["metadata"]["uid"]
        pods = [pod for pod in self._pods("serving") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        key = deployment["metadata"]["labels"][labels.LABEL_ENGINE_KEY]
        template = spec["template"]
        new = [pod for pod in pods if pod["spec"] == template["spec"]]
        old = [pod for pod in pods if pod not in new]
        want, surge = spec["replicas"], spec["strategy"].get("rollingUpdate", {}).get("maxSurge", 0)
        ready = [pod for pod in new if _ready(pod)]
        spare = max(len(old) - max(want - len(ready), 0), 0) if surge else len(old)
        if len(new) > want:
            self.api.delete(POD, deployment["metadata"]["namespace"], new[-1]["metadata"]["name"])
        elif len(new) < want and len(pods) < want + surge:
            self._pod(deployment, f"{deployment['metadata']['name']}-{key[:6]}-{next(self.api._uid)}")
        elif old and (spare or want == 0):
            self.api.delete(POD, deployment["metadata"]["namespace"], old[0]["metadata"]["name"])
        else:
            return self._report(deployment, pods, new)
        return True

    def _report(self, deployment: Json, pods: list[Json], new: list[Json]) -> bool:
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(new),
            "availableReplicas": len([pod for pod in pods if _ready(pod)]),
            "readyReplicas": len([pod for pod in pods if _ready(pod)]),
        }
        if deployment.get("status") == status:
            return False
        self._edit(DEPLOYMENT, deployment, {"status": status})
        return True

    def _start_servers(self) -> bool:
        for pod in self._pods("serving"):
            key = pod["metadata"]["labels"][labels.LABEL_ENGINE_KEY]
            if pod.get("status"):
                continue
            if "serving" in self.stuck:
                self._edit(POD, pod, {"status": _unscheduled()})
                return True
            if key in self.broken:
                self._edit(POD, pod, {"status": _crashing(self._stamp())})
                return True
            args = pod["spec"]["containers"][0]["args"]
            engine = args[args.index("--engine") + 1].removeprefix("/engines/")
            assert engine == key
            assert (self._store(pod), key) in self.engines, f"pod serves engine {key}, which is not whole"
            self._edit(POD, pod, {"status": _running(ready=True)})
            return True
        return False

    def _pods(self, *components: str) -> list[Json]:
        return [pod for pod in self.api.all(POD) if pod["metadata"]["labels"].get(labels.LABEL_COMPONENT) in components]

    def _pod(self, owner: Json, name: str) -> None:
        template = owner["spec"]["template"]
        reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
        reference |= {"uid": owner["metadata"]["uid"], "controller": True}
        meta = {"name": name, "namespace": owner["metadata"]["namespace"], "labels": template["metadata"]["labels"]}
        self.api.add(POD, {"metadata": {**meta, "ownerReferences": [reference]}, "spec": template["spec"]})

    def _edit(self, kind: Any, obj: Json, change: Json) -> None:
        self.api.edit(kind, obj["metadata"]["namespace"], obj["metadata"]["name"], change, manager="controller")

    def _stamp(self) -> str:
        return self.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    """Time that only tests move."""

    def __init__(self, start: Any) -> None:
        self.time = start

    def __call__(self) -> Any:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def _ready(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def _running(*, ready: bool) -> Json:
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    containers = [{"name": "main", "state": {"running": {}}, "restartCount": 0}]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": containers}


def _unscheduled() -> Json:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    return {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}


def _crashing(at: str) -> Json:
    last = {"exitCode": 1, "message": "no room for the weights", "finishedAt": at}
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "main", "state": state, "lastState": {"terminated": last}, "restartCount": 2}],
    }
