"""Wish → objects: what they hold, and that the same wish gives the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_api import labels, wire
from multimodal_api.engine import BuildInputs
from multimodal_api.overrides import Overrides
from multimodal_operator.differ import must_apply
from multimodal_operator.kinds import Json
from multimodal_operator.render import deployment, job, pvc, service, service_account
from multimodal_operator.render.common import compact, seal
from multimodal_operator.settings import Images
from multimodal_operator.snapshot import HELD_SPEC, Purpose
from support.snapshots import IMAGES, MODEL, STORE_UID, resource, stored, want

GPU = {"numGpus": 1, "engine": {"backend": "torch"}}
EVERYTHING: Json = {
    "image": "mine:1",
    "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "schedulerName": "theirs",
    "env": [{"name": "A", "value": "1"}, {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccountName": "mine",
}


def rendered(**spec: Any) -> dict[str, Json]:
    wanted = want(resource(**spec))
    return {
        "claim": pvc.claim(wanted),
        "account": service_account.service_account(wanted),
        "service": service.service(wanted),
        "deployment": deployment.deployment(wanted, IMAGES, store_uid=STORE_UID),
        **{purpose.value: job.job(wanted, IMAGES, purpose, store_uid=STORE_UID) for purpose in Purpose},
    }


def pod_of(obj: Json) -> Json:
    spec: Json = obj["spec"]["template"]["spec"]
    return spec


def test_every_child_is_labelled_and_owned() -> None:
    for obj in rendered().values():
        assert obj["metadata"]["labels"][labels.LABEL_MANAGED_BY] == labels.MANAGED_BY
        assert obj["metadata"]["labels"][labels.LABEL_INSTANCE] == "neva"
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == ("uid-of-neva", True)
        assert len(obj["metadata"]["name"]) <= 63
    assert "ownerReferences" not in rendered(deletionPolicy="Retain")["claim"]["metadata"]


@pytest.mark.parametrize("name", ["deployment", "build", "inspect", "find"])
def test_pods_meet_the_restricted_standard(name: str) -> None:
    pod = pod_of(rendered(**GPU)[name])
    (main,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not main["securityContext"]["allowPrivilegeEscalation"]
    assert main["securityContext"]["readOnlyRootFilesystem"]
    assert not pod["automountServiceAccountToken"]


@pytest.mark.parametrize(("name", "field"), [("deployment", "serving"), ("build", "build")])
def test_settings_of_pods_are_all_taken(name: str, field: str) -> None:
    pod = pod_of(rendered(**{field: EVERYTHING, **GPU})[name])
    (main,) = pod["containers"]
    assert main["image"] == "mine:1"
    assert main["resources"] == {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"}}
    names = [variable["name"] for variable in main["env"]]
    assert sorted(names) == ["A", "HOME", "TMPDIR"], "each name once"
    assert next(v for v in main["env"] if v["name"] == "HOME") == {"name": "HOME", **EVERYTHING["env"][1]}
    same = ("nodeSelector", "affinity", "runtimeClassName", "priorityClassName", "schedulerName", "imagePullSecrets")
    assert {key: pod[key] for key in same} == {key: EVERYTHING[key] for key in same}
    assert pod["tolerations"] == EVERYTHING["tolerations"]
    assert pod["serviceAccountName"] == "mine"


def test_only_the_build_asks_for_gpus_before_serving() -> None:
    found = rendered(**GPU)
    asked = {
        name: "limits" in pod_of(found[name])["containers"][0]["resources"] for name in ("find", "inspect", "build")
    }
    assert asked == {"find": False, "inspect": False, "build": True}


def test_each_checkpoint_comes_from_its_own_place() -> None:
    model = {
        **MODEL,
        "llmCheckpoint": {"hf": {"repo": "owner/llm", "revision": "v1"}},
        "loraCheckpoint": {"pvc": {"claimName": "adapters", "path": "lora.nemo"}},
    }
    pod = pod_of(job.job(want(resource(model=model)), IMAGES, Purpose.BUILD, store_uid=STORE_UID))
    args: list[str] = pod["containers"][0]["args"]
    given = {role: args[args.index(f"--{role}-checkpoint") + 1] for role in ("visual", "llm", "lora")}
    assert given == {
        "visual": "/checkpoints/visual/neva.nemo",
        "llm": "hf:owner/llm@v1",
        "lora": "/checkpoints/lora/lora.nemo",
    }
    mounted = {mount["mountPath"]: mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted["/checkpoints/visual"]
    assert mounted["/checkpoints/lora"]
    assert "/checkpoints/llm" not in mounted


def test_the_build_is_told_all_of_its_inputs() -> None:
    model = {**MODEL, "hfTokenSecret": {"name": "token", "key": "hf"}}
    wanted = want(resource(model=model))
    made = job.job(wanted, IMAGES, Purpose.BUILD, store_uid=STORE_UID, keep=("1" * 16, "2" * 16))
    pod = pod_of(made)
    (main,) = pod["containers"]
    args: list[str] = main["args"]
    assert main["command"] == ["multimodal-builder"]
    assert BuildInputs.model_validate_json(args[args.index("--inputs") + 1]).key() == wanted.key
    assert args[args.index("--visual-checkpoint") + 1] == "/checkpoints/visual/neva.nemo"
    assert args[-4:] == ["--keep", "1" * 16, "--keep", "2" * 16]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "hf"}}} in main["env"]
    mounts = {mount["mountPath"]: mount for mount in main["volumeMounts"]}
    assert mounts["/checkpoints/visual"]["readOnly"]
    assert not mounts["/engines"]["readOnly"]
    assert made["spec"]["podFailurePolicy"]["rules"][0]["action"] == "Ignore", "a drained node is no failure"
    assert made["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [3]
    assert "ttlSecondsAfterFinished" not in made["spec"], "the Job is the engine's witness"


def test_one_claim_for_store_and_checkpoint_is_one_volume() -> None:
    wanted = want(resource(engineStore={"claimName": "checkpoints"}))
    pod = pod_of(job.job(wanted, IMAGES, Purpose.BUILD, store_uid=STORE_UID))
    assert [volume["name"] for volume in pod["volumes"]] == ["claim-0", "scratch"]
    assert len(pod["containers"][0]["volumeMounts"]) == 3


def test_looking_for_an_engine_mounts_no_checkpoint() -> None:
    wanted = want(resource(engine={"key": "0" * 16}))
    found = job.job(wanted, IMAGES, Purpose.FIND, store_uid=STORE_UID)
    assert "--expect-engine" in pod_of(found)["containers"][0]["args"]
    assert [mount["mountPath"] for mount in pod_of(found)["containers"][0]["volumeMounts"]] == ["/engines", "/tmp"]


def test_a_job_is_named_by_key_and_store_alone() -> None:
    names = {
        want(resource(**spec)).job_name(Purpose.BUILD)
        for spec in (
            {"engineStore": {"claimName": "s"}},
            {"engineStore": {"claimName": "s"}, "serving": {"replicas": 3}, "build": {"image": "x:1"}},
        )
    }
    assert len(names) == 1
    assert names != {want(resource(engineStore={"claimName": "t"})).job_name(Purpose.BUILD)}


def test_what_a_job_keeps_and_who_made_it_is_no_reason_to_make_it_anew() -> None:
    wanted = want(resource())
    digests = {
        job.job(wanted, IMAGES, Purpose.BUILD, store_uid="a", run=1)["metadata"]["annotations"][
            "multimodal.dev/applied"
        ],
        job.job(wanted, IMAGES, Purpose.BUILD, store_uid="b", run=2, keep=("1" * 16,))["metadata"]["annotations"][
            "multimodal.dev/applied"
        ],
        job.template_digest(wanted, IMAGES, Purpose.BUILD),
    }
    assert len(digests) == 1
    other = Images(builder="builder:2", server="server:1")
    assert digests != {job.template_digest(wanted, other, Purpose.BUILD)}


def test_the_server_is_told_its_engine_and_names() -> None:
    wanted = want(resource(triton={"modelName": "m", "modelVersion": 3, "httpPort": 9500, "httpAddress": "10.0.0.1"}))
    pod = pod_of(deployment.deployment(wanted, IMAGES, store_uid=STORE_UID))
    main = pod["containers"][0]
    args: list[str] = main["args"]
    given = dict(zip(args[::2], args[1::2], strict=True))
    assert given["--engine"] == f"/engines/{wanted.key}"
    assert (given["--model-name"], given["--model-version"], given["--http-address"]) == ("m", "3", "10.0.0.1")
    assert given["--http-port"] == "8000", "the Service maps the user's number"
    drain, grace = float(given["--drain-seconds"]), float(given["--grace-seconds"])
    assert drain > 1.1 * wire.GRPC_CONNECTION_SECONDS, "gRPC spreads the age of connections by a tenth"
    assert drain + grace < pod["terminationGracePeriodSeconds"]
    assert main["startupProbe"]["httpGet"]["path"] == "/v2/models/m/ready"
    mounts = {mount["mountPath"]: mount for mount in main["volumeMounts"]}
    assert mounts["/engines"]["readOnly"]
    assert "/dev/shm" in mounts
    (http, *_rest) = service.service(wanted)["spec"]["ports"]
    assert (http["port"], http["targetPort"]) == (9500, "http")


def test_the_server_is_told_what_is_overridden_and_the_engine_stays() -> None:
    prompt = {"template": {"before": "pay $(HOME) \\u0024\n"}, "stopStrings": ["###"]}
    bare, changed = want(resource()), want(resource(prompt=prompt, preprocessing={"resize": "pad"}))
    args, more = (
        pod_of(deployment.deployment(wanted, IMAGES, store_uid=STORE_UID))["containers"][0]["args"]
        for wanted in (bare, changed)
    )
    assert more[:-1] == [*args, "--overrides"]
    assert "$" not in more[-1], "Kubernetes would put a variable's value there"
    assert Overrides.model_validate_json(more[-1]) == changed.spec.overrides()
    assert changed.key == bare.key


def test_the_server_is_told_where_media_may_be_fetched_and_the_engine_stays() -> None:
    bare, listed = want(resource()), want(resource(openai={"mediaDomains": ["example.org", "http://*.b.test:81"]}))
    args, more = (
        pod_of(deployment.deployment(wanted, IMAGES, store_uid=STORE_UID))["containers"][0]["args"]
        for wanted in (bare, listed)
    )
    assert more == [*args, "--media-domain", "example.org", "--media-domain", "http://*.b.test:81"]
    assert listed.key == bare.key


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ({}, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        (GPU, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        ({"serving": {"rollout": "Recreate"}}, {"type": "Recreate"}),
        (
            {**GPU, "serving": {"rollout": "RollingUpdate"}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        ),
    ],
)
def test_how_pods_are_replaced(spec: Json, strategy: Json) -> None:
    assert rendered(**spec)["deployment"]["spec"]["strategy"] == strategy


def test_probes_are_overridden_field_by_field() -> None:
    probes = {"startup": {"failureThreshold": 10, "periodSeconds": 30}, "liveness": {"timeoutSeconds": 9}}
    found = rendered(serving={"probes": probes})["deployment"]
    main = pod_of(found)["containers"][0]
    assert (main["startupProbe"]["failureThreshold"], main["startupProbe"]["timeoutSeconds"]) == (10, 5)
    assert (main["livenessProbe"]["periodSeconds"], main["livenessProbe"]["timeoutSeconds"]) == (10, 9)
    assert found["spec"]["progressDeadlineSeconds"] == 300 + 600


def test_what_is_held_is_what_was_rendered() -> None:

    wanted = want(resource())
    made = deployment.deployment(wanted, IMAGES, store_uid=STORE_UID)
    held_spec = json.loads(made["metadata"]["annotations"][HELD_SPEC])
    assert deployment.held(wanted, key=wanted.key, spec=held_spec, store_uid=STORE_UID) == made


@given(replicas=st.integers(0, 9), port=st.integers(1, 65_000), gpus=st.integers(0, 1), name=st.sampled_from("abc"))
def test_the_same_wish_gives_the_same_bytes_and_needs_no_second_apply(
    replicas: int, port: int, gpus: int, name: str
) -> None:
    spec: Json = {"serving": {"replicas": replicas}, "triton": {"httpPort": port + 10, "modelName": name}}
    spec |= GPU if gpus else {}
    first, second = rendered(**spec), rendered(**spec)
    for child, obj in first.items():
        assert compact(obj) == compact(second[child])
        if child in {"deployment", "service", "account", "claim"}:
            assert not must_apply(seal(obj), stored(seal(obj)))
