package loop

import (
	"context"
	"strings"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// CSROrder is a placement that is made without reaching the authority: who the host is, and what it is to hold.
type CSROrder struct {
	Placement client.PlacementOrder
	// Certificate is the ID of the one that is wanted, where the recipe has several.
	Certificate string
	// Host says who the host is. Where its name is empty, that is what the authority last said.
	Host recipe.Host
}

// CSR makes a key, keeps it in the state directory, and returns the request (PEM) that is signed by it. Asked again for the
// same, it returns the same.
func (a *Agent) CSR(ctx context.Context, o CSROrder) (string, error) {
	if o.Placement.Name == "" {
		o.Placement.Name = strings.TrimPrefix(o.Placement.Recipe, local)
	}
	if o.Host.Name == "" {
		last, err := a.state.lastDesired()
		if err != nil {
			return "", err
		}
		if last == nil {
			return "", fault.New(fault.Invalid, "this host has not joined, so its name is not known").WithHint("give --name NAME")
		}
		o.Host = hostOf(last)
	}
	w, err := a.offline(o.Placement, o.Host, &trusts{general: &trust{}})
	if err != nil {
		return "", err
	}
	if err := w.resolve(ctx); err != nil {
		return "", err
	}
	planned, err := choose(w.plan, o.Certificate)
	if err != nil {
		return "", err
	}
	if planned.Subject != "" && o.Host.Authority == "" && w.needsAuthority(ctx, planned) {
		return "", fault.New(fault.Invalid, "the subject of this recipe's certificate holds the name of the pool's root, which is not known here").
			WithHint("give --authority CN; chancery pool show POOL shows it")
	}
	if w.record.Plan != nil && w.record.Offline == nil && !w.record.Gone {
		return "", fault.New(fault.Conflict, "placement %s is the authority's: what it needs is asked for by chancery agent run", w.folder.name).
			WithHint("chancery agent status shows what is wrong with it")
	}
	w.record.Offline, w.record.Gone = &o.Host, false
	if err := w.folder.keepRecord(w.record); err != nil {
		return "", err
	}
	ask, err := w.folder.wanted(planned.ID)
	if err != nil {
		return "", err
	}
	if ask == nil || !sameWish(ask.Planned, planned) {
		if ask, err = newWanted(planned, "", nil, "it was asked for by hand", w.now); err != nil {
			return "", err
		}
		if err := w.folder.keepWanted(ask); err != nil {
			return "", err
		}
	}
	return ask.Request.CSR, nil
}

// needsAuthority reports whether the planned subject would be another one under another authority.
func (w *work) needsAuthority(ctx context.Context, planned recipe.PlannedCertificate) bool {
	other := *w
	other.host.Authority = "x"
	if err := other.resolve(ctx); err != nil {
		return false
	}
	again, err := choose(other.plan, planned.ID)
	return err == nil && again.Subject != planned.Subject
}

// choose finds a planned certificate by its ID; the only one where none is named.
func choose(plan *recipe.Plan, id string) (recipe.PlannedCertificate, error) {
	var ids []string
	for _, planned := range plan.Certificates {
		if planned.ID == id || id == "" && len(plan.Certificates) == 1 {
			return planned, nil
		}
		ids = append(ids, planned.ID)
	}
	if id == "" {
		return recipe.PlannedCertificate{}, fault.New(fault.Invalid, "recipe %s has the certificates %s; one request is of one", plan.Recipe, strings.Join(ids, ", ")).
			WithHint("give --certificate %s", ids[0])
	}
	return recipe.PlannedCertificate{}, fault.New(fault.NotFound, "recipe %s has no certificate %q; it has %s", plan.Recipe, id, strings.Join(ids, ", "))
}

// offline begins the work on a placement that the authority does not know of.
func (a *Agent) offline(order client.PlacementOrder, host recipe.Host, t *trusts) (*work, error) {
	folder, err := a.state.folder(order.Name)
	if err != nil {
		return nil, err
	}
	record, err := folder.record()
	if err != nil {
		return nil, err
	}
	record.Order = order
	return &work{agent: a, order: client.DesiredPlacement{PlacementOrder: order}, host: host, trusts: t, now: a.now(), folder: folder, asks: folder, record: record}, nil
}

// PlaceOffline places what a bundle brings, for the key that CSR made or that is placed already. It reaches nothing but the
// consumer.
func (a *Agent) PlaceOffline(ctx context.Context, b *Bundle) (*Result, error) {
	if _, err := a.Repair(ctx); err != nil {
		return nil, err
	}
	name, fresh, err := a.ownerOf(b)
	if err != nil {
		return nil, err
	}
	t, err := b.trust()
	if err != nil {
		return nil, err
	}
	folder, err := a.state.folder(name)
	if err != nil {
		return nil, err
	}
	record, err := folder.record()
	if err != nil {
		return nil, err
	}
	if record.Offline == nil {
		return nil, fault.New(fault.Conflict, "placement %s is the authority's to change: it was not begun by chancery agent csr", name)
	}
	host := *record.Offline
	host.Authority = b.Authority
	w, err := a.offline(record.Order, host, t)
	if err != nil {
		return nil, err
	}
	if err := w.bring(ctx, fresh); err != nil {
		w.fail(err)
	}
	o := w.observe()
	if err := w.keep(&o); err != nil {
		return nil, err
	}
	return &Result{Host: host.Name, Observations: []client.Observation{o}}, nil
}

// bring places a certificate that a bundle brought, once the others of its plan are there too.
func (w *work) bring(ctx context.Context, fresh *held) error {
	if err := w.resolve(ctx); err != nil {
		return err
	}
	all := map[string]*held{}
	var missing []string
	for _, planned := range w.plan.Certificates {
		h, err := w.atHand(planned.ID)
		if err != nil {
			return err
		}
		if planned.ID == fresh.Planned.ID {
			h = fresh
		}
		if h == nil {
			missing = append(missing, planned.ID)
			continue
		}
		all[planned.ID] = h
	}
	if missing == nil {
		if err := w.check(all); err != nil {
			return err
		}
	}
	if err := w.folder.keepHeld(fresh, suffixNext); err != nil {
		return err
	}
	if err := w.folder.drop(fresh.Planned.ID, suffixWanted); err != nil {
		return err
	}
	if missing != nil {
		return fault.New(fault.Conflict, "certificate %s is kept; %s of the same recipe must be there too before anything is placed", fresh.Planned.ID, strings.Join(missing, ", ")).
			WithHint("chancery agent csr --certificate %s prints its request", missing[0])
	}
	return w.settle(ctx, all)
}

// atHand is what is to be placed for a certificate, else what is placed; nil where there is neither.
func (w *work) atHand(id string) (*held, error) {
	next, err := w.folder.held(id, suffixNext)
	if err != nil || next != nil {
		return next, err
	}
	return w.folder.held(id, suffixHeld)
}

// ownerOf finds the placement whose key the bundle's leaf is of, and joins the two.
func (a *Agent) ownerOf(b *Bundle) (string, *held, error) {
	names, err := a.state.folders()
	if err != nil {
		return "", nil, err
	}
	leaf := b.Path[0]
	path := string(keyfile.EncodeCertificates(b.Path...))
	for _, name := range names {
		folder, err := a.state.folder(name)
		if err != nil {
			return "", nil, err
		}
		asked, err := folder.asked()
		if err != nil {
			return "", nil, err
		}
		for _, h := range asked {
			key, err := keyfile.ParsePrivateKey([]byte(h.Key), nil)
			if err != nil || keyfile.CheckPair(key.Public(), leaf) != nil {
				continue
			}
			fresh := &held{Planned: h.Planned, Key: h.Key, Path: path}
			return name, fresh, fresh.parse()
		}
	}
	return "", nil, fault.New(fault.NotFound, "certificate %s (%s) is of a key that this host does not hold in %s", cert.FormatSerial(leaf.SerialNumber), leaf.Subject, a.state.dir).
		WithHint("chancery agent csr makes the key and prints the request for it")
}

// asked are the keys of a placement that a certificate may come for: asked for, placed, or brought before and not placed yet.
func (f *folder) asked() ([]held, error) {
	var all []held
	entries, err := f.state.list(dirPlacements, f.name)
	if err != nil {
		return nil, err
	}
	for _, name := range entries {
		switch {
		case strings.HasSuffix(name, suffixWanted):
			w, err := f.wanted(strings.TrimSuffix(name, suffixWanted))
			if err != nil {
				return nil, err
			}
			all = append(all, held{Planned: w.Planned, Key: w.Key})
		case name == fileRecord || name == fileTrust || !strings.HasSuffix(name, suffixHeld):
		case strings.HasSuffix(name, suffixNext):
			h, err := f.held(strings.TrimSuffix(name, suffixNext), suffixNext)
			if err != nil {
				return nil, err
			}
			all = append(all, *h)
		default:
			h, err := f.held(strings.TrimSuffix(name, suffixHeld), suffixHeld)
			if err != nil {
				return nil, err
			}
			all = append(all, *h)
		}
	}
	return all, nil
}
