package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"chancery/internal/run/prober"
)

// visits are the consumers beside the agents of a process, and the connections that they keep opening to each other.
type visits struct {
	mu        sync.Mutex // guards what follows
	consumers []*prober.Consumer
	prober    *prober.Prober
}

// visitState is how they do.
type visitState struct {
	Consumers int
	Ready     int // that have read all of their files
	prober.Count
}

// add starts the consumer of a host, which reads what lies below root.
func (v *visits) add(name, root string) error {
	c, err := prober.Serve(name, "127.0.0.1:0", prober.Files{
		Pair: filepath.Join(root, placedPair), Trust: filepath.Join(root, placedTrust), CRLs: filepath.Join(root, placedCRL),
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.consumers = append(v.consumers, c)
	return nil
}

// The visits of all consumers of a process: so many at a time, and a rest after each, so that the two processors have time for
// what is measured, too. All pairs of 200 hosts are visited in about half a minute.
const (
	visitors = 8
	visitGap = 5 * time.Millisecond
)

// serve adds the paths by which the benchmark has them begin, asks, and has them end.
func (v *visits) serve(mux *http.ServeMux) {
	mux.HandleFunc("/visits/begin", func(http.ResponseWriter, *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.prober == nil {
			v.prober = prober.Start(v.consumers, visitors, visitGap)
		}
	})
	mux.HandleFunc("/visits", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(v.state()); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
}

func (v *visits) state() visitState {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := visitState{Consumers: len(v.consumers)}
	for _, c := range v.consumers {
		if c.Ready() == nil {
			s.Ready++
		}
	}
	if v.prober != nil {
		s.Count = v.prober.Count()
	}
	return s
}

// end ends the prober, and then the consumers.
func (v *visits) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.prober != nil {
		v.prober.Stop()
	}
	for _, c := range v.consumers {
		_ = c.Close()
	}
}

// visited asks a crew how its visits go.
func visited(ctx context.Context, at string) (*visitState, error) {
	text, err := fetch(ctx, at+"/visits")
	if err != nil {
		return nil, err
	}
	var s visitState
	return &s, json.Unmarshal(text, &s)
}

// visitsUntil asks until it is as it shall be.
func (b *bench) visitsUntil(ctx context.Context, at string, done func(*visitState) bool) (*visitState, error) {
	ctx, cancel := context.WithTimeout(ctx, b.agentPatience)
	defer cancel()
	for {
		s, err := visited(ctx, at)
		if err != nil {
			return nil, err
		}
		if done(s) {
			return s, nil
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return nil, errors.Join(fmt.Errorf("the visits are not as they shall be: %d consumers, %d ready, %v", s.Consumers, s.Ready, s.Count), err)
		}
	}
}
