"""The bootstrap server of a prefill server: SGLang's registry, and where the fabric's nodes are."""

from __future__ import annotations

from typing import Any

import requests
from aiohttp import web

from sglang.srt.disaggregation.base.conn import BaseKVBootstrapServer
from sglang.srt.disaggregation.common.conn import CommonKVBootstrapServer

# More nodes than a server has ranks, fewer than would hurt.
MAX_NODES = 4096
TIMEOUT_SECONDS = 5


class MoaiKVBootstrapServer(BaseKVBootstrapServer):
    """See the module. Not itself an SGLang registry, so that SGLang's Rust server does not stand in for it."""

    def __init__(self, host: str, port: int):
        self._registry = _Registry(host, port)

    def close(self) -> None:
        """Ends it."""
        self._registry.close()


class _Registry(CommonKVBootstrapServer):
    def _setup_routes(self) -> None:
        super()._setup_routes()
        self._nodes: dict[int, dict[str, Any]] = {}
        self.app.router.add_put("/moai", self._put_node)
        self.app.router.add_get("/moai", self._get_nodes)

    async def _handle_route_put(self, request: web.Request) -> web.Response:
        response = await super()._handle_route_put(request)
        # Decoders compare neither: what of the two sides must fit, the fabric finds out from their descriptions.
        self.page_size = None
        self.kv_cache_dtype = None
        return response

    async def _put_node(self, request: web.Request) -> web.Response:
        node = await request.json()
        problem = misfit(node)
        if problem is not None:
            return web.Response(status=400, text=problem)
        async with self.lock:
            if len(self._nodes) >= MAX_NODES:
                return web.Response(status=400, text=f"there are {MAX_NODES} nodes already")
            # A node of another life ends that of before.
            if any(known["epoch"] != node["epoch"] for known in self._nodes.values()):
                self._nodes.clear()
            self._nodes[node["node"]] = node
        return web.Response(text="OK")

    async def _get_nodes(self, _: web.Request) -> web.Response:
        async with self.lock:
            return web.json_response(list(self._nodes.values()))


def misfit(node: Any) -> str | None:
    """What is wrong with a node as it is registered, if anything."""
    if not isinstance(node, dict):
        return f"a node is {type(node).__name__}; expected an object"
    for name, kind in (("engine", str), ("epoch", int), ("node", int), ("ranks", list), ("addresses", list)):
        if not isinstance(node.get(name), kind):
            return f"{name}: {str(node.get(name))[:100]!r}; expected {kind.__name__}"
    for name, kind in (("ranks", int), ("addresses", str)):
        if len(node[name]) > MAX_NODES or not all(isinstance(one, kind) for one in node[name]):
            return f"{name}: expected at most {MAX_NODES} of {kind.__name__}"
    return None


def put_node(url: str, node: dict[str, Any]) -> None:
    """Registers a rank's node. Raises `RuntimeError`."""
    try:
        response = requests.put(f"{url}/moai", json=node, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise RuntimeError(f"the bootstrap server at {url} cannot be reached: {error}") from error
    if response.status_code != 200:
        raise RuntimeError(f"the bootstrap server at {url} does not take the fabric's node: {response.status_code} {response.text[:200]}")


def get_nodes(address: str) -> list[dict[str, Any]]:
    """The nodes of a prefill server. Raises `RuntimeError`."""
    try:
        response = requests.get(f"http://{address}/moai", timeout=TIMEOUT_SECONDS)
        nodes = response.json() if response.status_code == 200 else None
    except (requests.RequestException, ValueError) as error:
        raise RuntimeError(f"the bootstrap server at {address} cannot be asked: {error}") from error
    if not isinstance(nodes, list) or not nodes or len(nodes) > MAX_NODES:
        raise RuntimeError(f"the bootstrap server at {address} names no nodes: it is not one of the backend moai ({response.status_code})")
    for node in nodes:
        problem = misfit(node)
        if problem is not None:
            raise RuntimeError(f"the bootstrap server at {address} names a node that cannot be: {problem}")
    return nodes
