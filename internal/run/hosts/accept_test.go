package hosts_test

import (
	"testing"

	"chancery/client"
)

// TestDaemonAcceptsByItsNames: libvirtd takes what was placed, under each of the host's names, and under another one once
// the host has it.
func TestDaemonAcceptsByItsNames(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).renews) {
		return
	}
	w := theWorld(t)
	for _, variant := range []string{"upstream", "qemu-group"} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			pool := w.pool(t)
			other := "other-name-" + variant
			h := w.newHost(t, "host", machine{pool: pool.Name, groups: []string{"libvirt-qemu"}, resolves: []string{other}})
			port := h.configure()
			h.join(order("libvirt-server", "variant="+variant))
			h.converge()
			if seen := h.observed("libvirt-server"); seen.State != client.PlacementDown {
				t.Errorf("before the daemon runs: %+v", seen)
			}
			d, c := h.libvirtd(port), w.peer(t, pool, "client1")
			d.lets(h.name, c)
			d.lets(h.at, c)
			h.converge()
			seen := h.observed("libvirt-server")
			if seen.State != client.PlacementServed || seen.Served != seen.Serial {
				t.Errorf("reported is %+v", seen)
			}
			fails(t, d.virsh(other, c, "list"), "owner does not match the hostname")
			w.chancery(t, "host", "set", h.name, "--dns", other)
			h.converge()
			d.lets(other, c)
			d.lets(h.name, c)
			if again := h.observed("libvirt-server"); again.Serial == seen.Serial || again.Served != again.Serial {
				t.Errorf("after the change: %+v", again)
			}
		})
	}
}
