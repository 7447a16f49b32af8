"""A cloud on this machine for Ray's autoscaler, whose machines are Ray nodes."""

from pathlib import Path

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray_nodes import kill_with_children


class FakeCloud(FakeMultiNodeProvider):
    """Machines of a type are refused while there is a file `refuse-TYPE` in the cloud's folder.

    A machine is taken away by killing its processes; the folder has `pid-NODE` of each.
    """

    def __init__(self, provider_config, cluster_name):
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])

    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        if (self._folder / f"refuse-{node_type}").exists():
            (self._folder / f"refused-{node_type}").touch()
            raise RuntimeError(f"there are no more {node_type} machines")
        for _ in range(count):
            known = set(self._nodes)
            self._create_node_with_resources_and_labels(node_config, tags, 1, resources, labels)
            (made,) = set(self._nodes) - known
            (self._folder / f"pid-{node_type}-{made}").write_text(str(self._raylet(made).pid))

    def non_terminated_nodes(self, tag_filters):
        with self.lock:
            for node_id in list(self._nodes):
                if "node" in self._nodes[node_id] and self._raylet(node_id).poll() is not None:
                    del self._nodes[node_id]  # taken away
            return super().non_terminated_nodes(tag_filters)

    def _terminate_node(self, node):
        kill_with_children(node["node"].all_processes["raylet"][0].process.pid)
        super()._terminate_node(node)

    def _raylet(self, node_id):
        return self._nodes[node_id]["node"].all_processes["raylet"][0].process
