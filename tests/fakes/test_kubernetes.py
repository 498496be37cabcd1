import time

import pytest

kubernetes = pytest.importorskip("kubernetes")
from kubernetes.stream import stream


@pytest.fixture(scope="module")
def api(fake):
    settings = kubernetes.client.Configuration(host=fake("kubernetes"))
    settings.api_key = {"authorization": "Bearer good"}
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(settings))


def make(api, name, image="debian", labels=None):
    body = {"metadata": {"name": name, "labels": labels or {}}, "spec": {"containers": [{"name": "sandbox", "image": image, "command": ["sleep", "1d"]}]}}
    api.create_namespaced_pod("some", body)
    for _ in range(200):
        pod = api.read_namespaced_pod(name, "some")
        waiting = pod.status.container_statuses[0].state.waiting
        if pod.status.phase == "Running" or (waiting and waiting.reason == "ErrImagePull"):
            return pod
        time.sleep(0.05)
    raise AssertionError("it does not run")


def test_a_program_runs_in_a_pod(api):
    assert make(api, "one").status.phase == "Running"
    ask = dict(command=["bash", "-c", "echo out; echo err >&2; exit 3"], stderr=True, stdin=False, stdout=True, tty=False, _preload_content=False)
    program = stream(api.connect_get_namespaced_pod_exec, "one", "some", **ask)
    program.run_forever(timeout=10)
    assert (program.read_stdout(), program.read_stderr(), program.returncode) == ("out\n", "err\n", 3)
    ask["command"], ask["stdin"] = ["bash", "-c", "read line; echo got $line"], True
    program = stream(api.connect_get_namespaced_pod_exec, "one", "some", **ask)
    program.write_stdin("x" * 9000 + "\n")
    program.run_forever(timeout=10)
    assert program.read_stdout() == "got " + "x" * 9000 + "\n" and program.returncode == 0
    api.delete_namespaced_pod("one", "some")
    with pytest.raises(kubernetes.client.ApiException) as gone:
        api.read_namespaced_pod("one", "some")
    assert gone.value.status == 404


def test_pods_are_listed_by_labels_page_by_page(api):
    for number in range(5):
        make(api, f"listed-{number}", labels={"list": "me"})
    names, following = [], None
    while True:
        page = api.list_namespaced_pod("some", label_selector="list=me", limit=2, _continue=following)
        names += [pod.metadata.name for pod in page.items]
        following = page.metadata._continue
        if not following:
            break
    assert sorted(names) == [f"listed-{number}" for number in range(5)]


def test_an_image_that_is_not_there_is_waited_for(api):
    waiting = make(api, "none", image="no-such/image").status.container_statuses[0].state.waiting
    assert waiting.reason == "ErrImagePull" and "no-such/image" in waiting.message


def test_whoever_has_no_token_is_refused(api):
    other = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(kubernetes.client.Configuration(host=api.api_client.configuration.host)))
    with pytest.raises(kubernetes.client.ApiException) as refused:
        other.list_namespaced_pod("some")
    assert refused.value.status == 401


def test_a_controller_makes_a_pod_of_each_sandbox_and_removes_both_in_time(api):
    objects = kubernetes.client.CustomObjectsApi(api.api_client)
    place = dict(group="agents.x-k8s.io", version="v1beta1", namespace="some", plural="sandboxes")
    container = {"name": "sandbox", "image": "debian", "command": ["sleep", "1d"]}
    template = {"metadata": {"labels": {"made": "by-controller"}}, "spec": {"containers": [container]}}
    body = {"apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "metadata": {"name": "agent", "labels": {"made": "by-controller"}},
            "spec": {"podTemplate": template, "shutdownPolicy": "Delete"}}
    objects.create_namespaced_custom_object(body=body, **place)

    def pods():
        return [pod.metadata.name for pod in api.list_namespaced_pod("some", label_selector="made=by-controller").items]

    def until(holds):
        for _ in range(200):
            if holds():
                return
            time.sleep(0.05)
        raise AssertionError("it does not come about")

    until(lambda: pods() == ["agent"])
    listed = objects.list_namespaced_custom_object(label_selector="made=by-controller", **place)
    assert [it["metadata"]["name"] for it in listed["items"]] == ["agent"]
    objects.patch_namespaced_custom_object(name="agent", body={"spec": {"shutdownTime": "2020-01-01T00:00:00Z"}}, _content_type="application/merge-patch+json", **place)
    until(lambda: pods() == [])
    with pytest.raises(kubernetes.client.ApiException) as gone:
        objects.get_namespaced_custom_object(name="agent", **place)
    assert gone.value.status == 404
