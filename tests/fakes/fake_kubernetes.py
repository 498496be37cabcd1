"""The API of a Kubernetes cluster, as far as pods, network policies, programs in pods and agent-sandbox's `Sandbox` objects go, with that
project's controller: `python fake_kubernetes.py` says where it listens. The token `good` is good."""

import asyncio, datetime, json

from aiohttp import WSMsgType, web

from fake_e2b import serve
from machines import Machine

pods, policies, sandboxes = {}, {}, {}
AGENTS, VERSIONS = "agents.x-k8s.io", ["v1beta1", "v1alpha1"]


def status(code, reason, message):
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.json_response(body, status=code)


class Pod:
    def __init__(self, body, namespace):
        self.body, self.container = body, body["spec"]["containers"][0]
        body["metadata"] |= {"namespace": namespace, "uid": body["metadata"]["name"],
                             "creationTimestamp": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self.machine = Machine("marked" if self.container["image"] == "marked" else None)
        self.waiting, self.phase = {"reason": "ContainerCreating"}, "Pending"
        self.going = asyncio.create_task(self.arrive())

    async def arrive(self):
        # Whoever does not wait is found out.
        await asyncio.sleep(0.15)
        if self.container["image"].startswith("no-such/"):
            self.waiting = {"reason": "ErrImagePull", "message": f"pull access denied for {self.container['image']}"}
        else:
            self.machine.start()
            self.phase = "Running"

    def shown(self):
        state = {"running": {}} if self.phase == "Running" else {"waiting": self.waiting}
        containers = [{"name": self.container["name"], "ready": self.phase == "Running", "restartCount": 0, "image": self.container["image"],
                       "imageID": "", "state": state}]
        return {**self.body, "apiVersion": "v1", "kind": "Pod", "status": {"phase": self.phase, "containerStatuses": containers}}


def is_shut(labels):
    """Whether nothing leaves it. Pods of this server's are in a policy before they are made."""
    if not labels.get("vaquero/owner"):
        return True
    return any(policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items() and not policy["spec"].get("egress") for policy in policies.values())


async def create(request):
    body = await request.json()
    name = body["metadata"]["name"]
    if name in pods:
        return status(409, "AlreadyExists", f'pods "{name}" already exists')
    if not is_shut(body["metadata"].get("labels", {})):
        return status(422, "Invalid", "its network is not shut")
    pods[name] = Pod(body, request.match_info["namespace"])
    return web.json_response(pods[name].shown(), status=201)


def remove(name):
    pod = pods.pop(name, None)
    if pod:
        pod.going.cancel()
        pod.machine.destroy()


async def groups(request):
    versions = [{"groupVersion": f"{AGENTS}/{version}", "version": version} for version in VERSIONS]
    return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": [
        {"name": AGENTS, "versions": versions, "preferredVersion": versions[0]}]})


async def resources(request):
    kind = {"name": "sandboxes", "singularName": "sandbox", "namespaced": True, "kind": "Sandbox", "verbs": ["create", "delete", "get", "list", "patch"]}
    return web.json_response({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{AGENTS}/{request.match_info['version']}", "resources": [kind]})


async def create_sandbox(request):
    body = await request.json()
    name, template = body["metadata"]["name"], body["spec"]["podTemplate"]
    if unknown := body["spec"].keys() - {"podTemplate", "shutdownTime", "shutdownPolicy", "volumeClaimTemplates", "service"}:
        return status(422, "Invalid", f"unknown field {unknown}")
    if name in sandboxes:
        return status(409, "AlreadyExists", f'sandboxes "{name}" already exists')
    if not is_shut(template.get("metadata", {}).get("labels", {})):
        return status(422, "Invalid", "its network is not shut")
    sandboxes[name] = body
    asyncio.create_task(control(name, request.match_info["namespace"]))
    return web.json_response(body, status=201)


async def control(name, namespace):
    """What the controller does for one: a pod of its name, which goes with it, and after its time."""
    await asyncio.sleep(0.1)
    while body := sandboxes.get(name):
        if name not in pods:
            template = json.loads(json.dumps(body["spec"]["podTemplate"]))
            pods[name] = Pod({"metadata": {"name": name, "labels": template.get("metadata", {}).get("labels", {})}, "spec": template["spec"]}, namespace)
        end = body["spec"].get("shutdownTime")
        if end and datetime.datetime.fromisoformat(end.replace("Z", "+00:00")) <= datetime.datetime.now(datetime.timezone.utc):
            sandboxes.pop(name) if body["spec"].get("shutdownPolicy") == "Delete" else None
            break
        await asyncio.sleep(0.05)
    # As late as a garbage collector.
    await asyncio.sleep(0.1)
    remove(name)


async def sandbox(request):
    name = request.match_info["name"]
    if name not in sandboxes:
        return status(404, "NotFound", f'sandboxes.agents.x-k8s.io "{name}" not found')
    if request.method == "PATCH":
        if request.content_type != "application/merge-patch+json":
            return status(415, "UnsupportedMediaType", "this fake knows only merge patches of sandboxes")
        sandboxes[name]["spec"] |= json.loads(await request.read())["spec"]
    if request.method == "DELETE":
        return web.json_response(sandboxes.pop(name))
    return web.json_response(sandboxes[name])


async def list_sandboxes(request):
    wanted = dict(pair.split("=", 1) for pair in request.query.get("labelSelector", "").split(",") if pair)
    found = [it for it in sandboxes.values() if wanted.items() <= it["metadata"].get("labels", {}).items()]
    return web.json_response({"kind": "SandboxList", "apiVersion": f"{AGENTS}/{request.match_info['version']}", "metadata": {"resourceVersion": "1"}, "items": found})


async def list_(request):
    wanted = dict(pair.split("=", 1) for pair in request.query.get("labelSelector", "").split(",") if pair)
    found = [it for it in pods.values() if wanted.items() <= it.body["metadata"].get("labels", {}).items()]
    # Small pages, so that whoever does not turn them is found out.
    start, size = int(request.query.get("continue") or 0), 3 if request.query.get("limit") else len(found)
    metadata = {"resourceVersion": "1", **({"continue": str(start + size)} if start + size < len(found) else {})}
    return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": [it.shown() for it in found[start:start + size]]})


async def one(request):
    name = request.match_info["name"]
    pod = pods.get(name)
    if not pod:
        return status(404, "NotFound", f'pods "{name}" not found')
    if request.method == "DELETE":
        remove(name)
    return web.json_response(pod.shown())


async def policy(request):
    name = request.match_info["name"]
    if "apply-patch" not in request.content_type or "fieldManager" not in request.query:
        return status(415, "UnsupportedMediaType", "this fake knows only server-side apply")
    policies[name] = json.loads(await request.read())
    return web.json_response(policies[name], status=201)


async def exec_(request):
    pod = pods.get(request.match_info["name"])
    if not pod or pod.phase != "Running":
        return status(404, "NotFound", "pod not found")
    protocols = [it.strip() for it in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    chosen = next((it for it in ("v5.channel.k8s.io", "v4.channel.k8s.io") if it in protocols), None)
    if not chosen:
        return status(400, "BadRequest", "no protocol is known")
    socket = web.WebSocketResponse(protocols=[chosen], max_msg_size=64 << 20)
    await socket.prepare(request)
    asked = lambda name: request.query.get(name) == "true"
    program = await pod.machine.exec(request.query.getall("command"), stdin=asked("stdin"))

    async def listen():
        async for message in socket:
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT) or not message.data:
                continue
            whole = message.data.encode() if message.type == WSMsgType.TEXT else message.data
            channel, data = whole[0], whole[1:]
            if channel == 0 and data:
                program.stdin.write(data)
                await program.stdin.drain()
            elif channel == 255 and data == b"\0":
                program.stdin.close()

    async def copy(channel, stream, wanted):
        while piece := await stream.read(32768):
            if wanted and not socket.closed:
                await socket.send_bytes(bytes([channel]) + piece)

    reader = asyncio.create_task(listen())
    try:
        await asyncio.gather(copy(1, program.stdout, asked("stdout")), copy(2, program.stderr, asked("stderr")))
        code = await program.wait()
        ended = {"metadata": {}, "status": "Success"} if code == 0 else {
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": f"command terminated with exit code {code}",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}
        await socket.send_bytes(b"\x03" + json.dumps(ended).encode())
        await socket.close()
    except ConnectionError:
        pass
    reader.cancel()
    return socket


@web.middleware
async def guard(request, handler):
    if request.headers.get("Authorization") != "Bearer good":
        return status(401, "Unauthorized", "Unauthorized")
    return await handler(request)


def application():
    app = web.Application(middlewares=[guard])
    base = "/api/v1/namespaces/{namespace}/pods"
    agents = f"/apis/{AGENTS}/{{version}}"
    of_agents = agents + "/namespaces/{namespace}/sandboxes"
    app.add_routes([
        web.get("/apis", groups), web.get(agents, resources), web.post(of_agents, create_sandbox), web.get(of_agents, list_sandboxes),
        *(web.route(method, of_agents + "/{name}", sandbox) for method in ("GET", "PATCH", "DELETE")),
        web.post(base, create), web.get(base, list_), web.get(base + "/{name}", one), web.delete(base + "/{name}", one),
        web.get(base + "/{name}/exec", exec_), web.post(base + "/{name}/exec", exec_),
        web.patch("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}", policy),
    ])
    return app


if __name__ == "__main__":
    asyncio.run(serve(application()))
