package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// maxNames bounds the names and addresses of a host, as far as a certificate's lists go.
const maxNames = 100

// checkName reads a host's own name: a DNS name in lower case, short enough for a principal's.
func checkName(text string) (string, error) {
	name, err := checkDNS(text)
	if err == nil && len(name) > 200 {
		err = fault.New(fault.Invalid, "host name %.40q… has %d octets; at most 200 pass", name, len(name))
	}
	if err != nil {
		return "", at(err, "/name")
	}
	return name, nil
}

func checkDNS(text string) (string, error) {
	if access.LooksLikeToken(text) {
		return "", fault.New(fault.Invalid, "that is a token's secret, and a name is wanted")
	}
	if _, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
		return "", fault.New(fault.Invalid, "%q is an address and no DNS name", text).WithHint("give it with --ip")
	}
	name, err := cert.ParseGeneralName("dns:" + text)
	if err != nil {
		return "", err
	}
	value := strings.ToLower(name.Value)
	if err := cert.CheckDNSName(value, false); err != nil {
		return "", fault.New(fault.Invalid, "DNS name %q: %w", text, err)
	}
	return value, nil
}

// checkDNSNames reads a host's DNS names; its own name is the first, whether it is given or not.
func checkDNSNames(own string, given []string) ([]string, error) {
	names := []string{own}
	for _, text := range given {
		name, err := checkDNS(text)
		if err != nil {
			return nil, at(err, "/dns")
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxNames {
		return nil, fault.New(fault.Invalid, "%d DNS names were given; at most %d pass", len(names), maxNames).At("/dns")
	}
	return names, nil
}

func checkAddresses(given []string) ([]string, error) {
	addresses := []string{}
	for _, text := range given {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%q is no IP address such as 192.0.2.1 or 2001:db8::1", text).At("/ip")
		}
		if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, fault.New(fault.Invalid, "%q is no address of one host", text).At("/ip")
		}
		if canonical := a.Unmap().String(); !slices.Contains(addresses, canonical) {
			addresses = append(addresses, canonical)
		}
	}
	if len(addresses) > maxNames {
		return nil, fault.New(fault.Invalid, "%d addresses were given; at most %d pass", len(addresses), maxNames).At("/ip")
	}
	return addresses, nil
}

// at says where in the input the fault is, if nobody did.
func at(err error, pointer string) error {
	if refused, ok := errors.AsType[*fault.Error](err); ok && refused.Pointer == "" {
		return refused.At(pointer)
	}
	return err
}

const (
	maxPlacements = 64
	localRecipe   = "local/" // the beginning of the names of recipes that lie on the host
)

// plainName is what recipes and placements may be named: their names become those of directories on the host.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,57}$`)

// checkPlacements judges orders of recipes, and gives each its name. A recipe that lies on the host is known there alone: its
// parameters are only held to characters that pass for no other word or line.
func (s *Service) checkPlacements(given []client.PlacementOrder) ([]client.PlacementOrder, error) {
	if len(given) > maxPlacements {
		return nil, fault.New(fault.Invalid, "%d placements were given; at most %d pass", len(given), maxPlacements).At("/placements")
	}
	orders := []client.PlacementOrder{}
	for _, order := range given {
		unnamed := order.Name == ""
		if err := s.checkOrder(&order); err != nil {
			return nil, at(err, "/placements")
		}
		taken := func(o client.PlacementOrder) bool { return o.Name == order.Name }
		for n, base := 2, order.Name; unnamed && slices.ContainsFunc(orders, taken); n++ {
			order.Name = fmt.Sprintf("%s-%d", base, n)
		}
		if slices.ContainsFunc(orders, taken) {
			return nil, fault.New(fault.Conflict, "two placements are named %q; give one another name", order.Name).At("/placements")
		}
		orders = append(orders, order)
	}
	if err := recipe.Together(orders, s.Recipe); err != nil {
		return nil, at(err, "/placements")
	}
	return orders, nil
}

// maxProfiles bounds the profiles that a host is allowed beside those of its placements.
const maxProfiles = 32

// checkProfiles judges the profiles that a host is to be allowed. One that is not there would allow nothing, and is misspelt.
func (s *Service) checkProfiles(ctx context.Context, given []string) ([]string, error) {
	profiles := []string{}
	for _, name := range given {
		if err := s.CA.HasProfile(ctx, name); err != nil {
			return nil, at(err, "/profiles")
		}
		if !slices.Contains(profiles, name) {
			profiles = append(profiles, name)
		}
	}
	if len(profiles) > maxProfiles {
		return nil, fault.New(fault.Invalid, "%d profiles were given; at most %d pass", len(profiles), maxProfiles).At("/profiles")
	}
	return profiles, nil
}

func (s *Service) checkOrder(order *client.PlacementOrder) error {
	name, local := strings.CutPrefix(order.Recipe, localRecipe)
	if !plainName.MatchString(name) {
		return fault.New(fault.Invalid, "recipe name %q is not 1 to 58 letters, digits and ._-, the first a letter or digit", order.Recipe)
	}
	if order.Name == "" {
		order.Name = name
	}
	if !plainName.MatchString(order.Name) {
		return fault.New(fault.Invalid, "placement name %q is not 1 to 58 letters, digits and ._-, the first a letter or digit", order.Name)
	}
	if err := recipe.CheckCharacters(order.Parameters); err != nil {
		return err
	}
	if local {
		return nil
	}
	r, ok := s.Recipe(order.Recipe)
	if !ok {
		return fault.New(fault.Invalid, "there is no recipe %q", order.Recipe).
			WithHint("chancery recipe list; a recipe of the host's own is named local/NAME")
	}
	return r.CheckParameters(order.Parameters)
}

func changeNames(ctx context.Context, tx *db.Tx, r *row, in client.ChangeHostRequest, detail map[string]any, now time.Time) error {
	dns, addresses, err := namesOf(ctx, tx, r.id)
	if err != nil {
		return err
	}
	if in.DNS != nil {
		if dns, err = checkDNSNames(r.name, *in.DNS); err != nil {
			return err
		}
		detail["dns"] = dns
	}
	if in.IP != nil {
		if addresses, err = checkAddresses(*in.IP); err != nil {
			return err
		}
		detail["ip"] = addresses
	}
	return takeNames(ctx, tx, r.id, dns, addresses, now)
}

// takeNames gives a host names and addresses that no other host has, in place of those it had.
func takeNames(ctx context.Context, tx *db.Tx, id string, dns, addresses []string, now time.Time) error {
	oldDNS, oldAddresses, err := namesOf(ctx, tx, id)
	if err != nil {
		return err
	}
	had := slices.Concat(oldDNS, oldAddresses)
	if _, err := tx.Exec(ctx, `DELETE FROM host_name WHERE host = $1`, id); err != nil {
		return err
	}
	position := int64(0)
	take := func(kind, name string) error {
		var owner string
		err := tx.QueryRow(ctx, `SELECT host.name FROM host_name JOIN host ON host.id = host_name.host WHERE host_name.name = $1`, name).Scan(&owner)
		if err == nil {
			return fault.New(fault.Conflict, "%s is a name of host %s; each name belongs to one host", name, owner).At("/"+kind).
				WithHint("chancery host show %s", owner)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if !slices.Contains(had, name) {
			if err := uncertified(ctx, tx, id, kind, name, now); err != nil {
				return err
			}
		}
		position++
		_, err = tx.Exec(ctx, `INSERT INTO host_name (name, kind, host, position) VALUES ($1, $2, $3, $4)`, name, kind, id, position)
		return err
	}
	for _, name := range dns {
		if err := take("dns", name); err != nil {
			return err
		}
	}
	for _, address := range addresses {
		if err := take("ip", address); err != nil {
			return err
		}
	}
	return nil
}
