package rollout

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fleet/host"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

const (
	looksAtOnce = 128 // connections side by side
	looksPer    = 256 // hosts that are looked at in one step, which has to end long before the lease does
	lookTimeout = 2 * time.Second
	// blindAfter is after how many hosts, none of which could be reached, the node takes it that it sees little of their network, and
	// looks at one of blindShare only.
	blindAfter = 50
	blindShare = 20
	// doubtFor is how long what is seen has to contradict what is reported: a consumer may be at its reload.
	doubtFor = time.Second
)

// doubts are what was seen on ports and contradicts reports, once so far.
type doubts struct {
	mu    sync.Mutex           // guards what follows
	since map[string]time.Time // by host's ID and reported serial
	blind int                  // hosts in a row that could not be reached
}

// sight is what was seen of a host from here.
type sight struct {
	contradiction string
	unreachable   string
}

// confirm looks at the ports of hosts whose agents report that they serve what they were told to, at the hosts' own names and
// addresses: of what a host says about itself only the port is taken. It returns those that may count as done. A host that cannot
// be reached is one of them, with a note of that.
func (s *Service) confirm(ctx context.Context, r *row, reached []member) (confirmed []member, contradiction string, err error) {
	if r.spec.NoNodeProbe || r.stage != client.StageRekey || r.kind == client.RolloutIdentities || len(reached) == 0 {
		return reached, "", nil
	}
	reached = reached[:min(len(reached), looksPer)]
	var held []host.Held
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		held, err = host.Holdings(ctx, tx, idsOf(reached))
		return err
	})
	if err != nil {
		return nil, "", err
	}
	byHost := map[string][]host.Held{}
	for _, h := range held {
		byHost[h.ID] = append(byHost[h.ID], h)
	}
	sights := make([]sight, len(reached))
	var wg sync.WaitGroup
	slots := make(chan struct{}, looksAtOnce)
	for i, m := range reached {
		if m.because != "" || s.doubted.skips(i) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			sights[i] = s.doubted.note(look(ctx, byHost[m.id]))
		})
	}
	wg.Wait()
	now := time.Now()
	for i, m := range reached {
		switch v := sights[i]; {
		case v.contradiction == "":
			m.message = v.unreachable
			confirmed = append(confirmed, m)
			s.doubted.settle(m.id)
		case !s.doubted.lasts(m.id, now):
		case !m.failing && contradiction == "":
			contradiction = fmt.Sprintf("host %s, %s", m.name, v.contradiction)
			s.doubted.settle(m.id) // once it is resumed, one look while the consumer is at its reload says nothing either
		}
	}
	return confirmed, contradiction, ctx.Err()
}

// look looks at all ports of a host that its agent probes.
func look(ctx context.Context, placements []host.Held) sight {
	var serials []string
	for _, h := range placements {
		serials = append(serials, h.Placement.Observed.Serial)
	}
	var v sight
	for _, h := range placements {
		o := h.Placement.Observed
		_, port, err := net.SplitHostPort(o.Address)
		if o.Address == "" || o.State != client.PlacementServed || err != nil {
			continue // nobody claims that it serves
		}
		v.unreachable = "" // of this port
		for _, address := range h.Addresses {
			at := net.JoinHostPort(address, port)
			seen, err := probe.Look(ctx, recipe.Probe{Address: at, StartTLS: o.StartTLS, Names: []string{h.Host}, Timeout: recipe.Duration(lookTimeout)}, nil)
			if err != nil || seen.Leaf() == nil {
				v.unreachable = fmt.Sprintf("placement %s could not be seen from the node: %v", h.Placement.Name, err)
				continue
			}
			shown := cert.FormatSerial(seen.Leaf().SerialNumber)
			if slices.Contains(serials, shown) {
				v.unreachable, v.contradiction = "", ""
				break
			}
			v.contradiction = fmt.Sprintf("placement %s: its agent reports that it serves %s, and seen from the node %s serves %s", h.Placement.Name, o.Serial, at, shown)
		}
		if v.contradiction != "" {
			return v
		}
	}
	return v
}

// skips reports whether a host need not be looked at, since the node sees nothing of their network.
func (d *doubts) skips(i int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blind >= blindAfter && i%blindShare != 0
}

func (d *doubts) note(v sight) sight {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.unreachable == "" {
		d.blind = 0
	} else {
		d.blind++
	}
	return v
}

// lasts reports whether a host was seen to contradict its agent for a while.
func (d *doubts) lasts(id string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	since, known := d.since[id]
	if !known {
		d.since[id] = now
		return false
	}
	return now.Sub(since) >= doubtFor
}

func (d *doubts) settle(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.since, id)
}
