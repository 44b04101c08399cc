"""What Patroni's client of etcd does for a primary that stood still, with the fence and without: thaw.py LAUNCHER ETCD fenced|plain.

The members are two clients in this process. Each answer is printed as a line: what was tried, and what came of it.
"""
import importlib.machinery
import importlib.util
import sys
from types import SimpleNamespace

launcher, etcd, how = sys.argv[1:]
loader = importlib.machinery.SourceFileLoader("fenced", launcher)
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fenced", loader))
loader.exec_module(module)
if how == "fenced":
    module.fence()

from patroni.dcs.etcd3 import Etcd3  # noqa: E402
from patroni.ha import Ha  # noqa: E402


def member(name):
    return Etcd3({"scope": how, "name": name, "hosts": [etcd], "ttl": 20, "loop_wait": 1, "retry_timeout": 3})


def look(dcs):
    dcs.get_cluster()
    dcs.decided_from = dcs.cluster.sync


def freed(dcs):
    """Its lease is revoked, as when it ran out, or when an etcd that stood still revokes it."""
    n2._client.call_rpc("/lease/revoke", {"ID": dcs._lease})


def tell(what, result):
    leader = n2._client.call_rpc("/kv/range", {"key": key}).get("kvs", [{}])[0].get("value")
    print("%s: %s, and the lock is %s" % (what, bool(result), {one: "n1", two: "n2", None: "free"}[leader]), flush=True)


n1, n2 = member("n1"), member("n2")
encode = sys.modules["patroni.dcs.etcd3"].base64_encode
one, two, key = encode("n1"), encode("n2"), encode(n1.leader_path)

look(n1)
tell("n1 takes the lock", n1.attempt_to_acquire_leader())
tell("n1 enters n2 as its standby", n1.write_sync_state("n1", "n2"))
look(n1)
tell("n1 keeps the lock", n1._update_leader())
n1._lease = None
tell("n1 keeps it under another lease", n1._update_leader())
look(n1)  # and stands still from here on, for longer than its lease lasts

freed(n1)
look(n2)
tell("n2 takes the lock", n2.attempt_to_acquire_leader())
tell("n2 enters itself", n2.write_sync_state("n2", None, index=n2.cluster.sync.index))

seen = n1.cluster
tell("n1 goes on and keeps the lock", n1._update_leader())
look(n2)
if n2.cluster.leader.name == "n2":
    freed(n2)
    tell("n1 goes on while it is free", n1._update_leader())
    tell("n1 takes the free lock by what it saw before", n1.attempt_to_acquire_leader())
    look(n1)
    tell("n1 enters n3 without the lock", n1.write_sync_state("n1", "n3", index=n1.cluster.sync.index))
look(n1)
tell("n1, a primary still, is fit to lead", Ha.is_healthiest_node(SimpleNamespace(
    cluster=n1.cluster, _released_leader_key_timestamp=0, dcs=n1, is_paused=lambda: False, is_synchronous_mode=lambda: True,
    state_handler=SimpleNamespace(name="n1", is_leader=lambda: True, is_starting=lambda: False))))
if seen.leader.name == "n1" and n1.cluster.is_unlocked():
    look(n2)
    tell("n2 takes it again", n2.attempt_to_acquire_leader())
