package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// actionCheckQEMU has qemu-img load the files as QEMU would, as QEMU's user.
const actionCheckQEMU = "check-qemu-credentials"

// checkQEMU loads the pairs of a directory by QEMU's own code, which looks at more than we do, and in its own way. Without
// qemu-img on the host there is nothing to ask.
func (c *consumer) checkQEMU(ctx context.Context, step recipe.Step) error {
	dir := c.system.Path(step.With["dir"])
	for _, endpoint := range []string{"server", "client"} {
		has := func(f recipe.PlannedFile) bool { return f.Secret() && path.Base(f.Path) == endpoint+"-key.pem" }
		if !slices.ContainsFunc(c.plan.Files, has) {
			continue
		}
		// A comma in a value is written twice.
		object := "tls-creds-x509,id=placed,verify-peer=on,endpoint=" + endpoint + ",dir=" + strings.ReplaceAll(dir, ",", ",,")
		_, err := c.system.Run(ctx, probe.Command{
			Args: []string{step.With["program"], "info", "--object", object, "--image-opts", "driver=null-co,size=512"},
			User: c.plan.User, Group: c.plan.Group,
		})
		if errors.Is(err, probe.ErrNoCommand) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// machinesOfLibvirt are the machines that libvirt runs and that have a VNC display with a port.
func machinesOfLibvirt(ctx context.Context, system probe.System, with map[string]string) ([]machine, error) {
	virsh := func(ctx context.Context, words ...string) (string, error) {
		out, err := system.Run(ctx, probe.Command{Args: append([]string{with["program"], "-q", "-c", with["uri"]}, words...)})
		return string(out), err
	}
	list, err := virsh(ctx, "list", "--uuid", "--name")
	if err != nil {
		return nil, fmt.Errorf("ask libvirt which machines run: %w", err)
	}
	_, unknown := virsh(ctx, "help", "domdisplay-reload")
	var all []machine
	for line := range strings.Lines(list) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !uuid.MatchString(id) {
			continue
		}
		said, err := virsh(ctx, "vncdisplay", id)
		display := vncAddress(said)
		if err != nil || display == "" {
			continue // it has no display of this kind, or ended meanwhile
		}
		m := machine{name: printed(strings.TrimSpace(name)), display: display}
		m.reload = func(ctx context.Context) error {
			out, err := virsh(ctx, "domdisplay-reload", id, "--type", "vnc")
			return libvirtReload(out, err)
		}
		if unknown != nil { // before 10.2.0
			m.reload = func(ctx context.Context) error {
				out, err := virsh(ctx, "qemu-monitor-command", id, `{"execute":"display-reload","arguments":{"type":"vnc","tls-certs":true}}`)
				if err != nil {
					return err
				}
				return monitorReload(out)
			}
		}
		all = append(all, m)
	}
	return all, nil
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// libvirtReload tells what QEMU refuses from what libvirt cannot do. libvirt hands QEMU's words on after its own.
func libvirtReload(out string, err error) error {
	if err != nil && strings.Contains(out, "internal error: unable to execute QEMU command 'display-reload'") && !strings.Contains(out, "has not been found") {
		return filesRefused{fmt.Errorf("QEMU does not take the files: %w", err)}
	}
	return err
}

// monitorReload reads the answer of QEMU as virsh qemu-monitor-command prints it.
func monitorReload(out string) error {
	var said struct {
		Return json.RawMessage `json:"return"`
		Error  *qmpError       `json:"error"`
	}
	switch err := json.Unmarshal([]byte(out), &said); {
	case err != nil:
		return fmt.Errorf("the answer to display-reload is no JSON: %s", printed(out))
	case said.Error != nil:
		return reloadError(said.Error, "a QEMU before 6.0")
	}
	return nil
}

// vncAddress is where a display is that virsh vncdisplay prints: HOST:N is port 5900+N, and no host means all addresses.
func vncAddress(said string) string {
	said = strings.TrimSpace(said)
	i := strings.LastIndexByte(said, ':')
	if i < 0 {
		return ""
	}
	n, err := strconv.ParseUint(said[i+1:], 10, 16)
	if err != nil || n > 65535-5900 {
		return ""
	}
	return net.JoinHostPort(literal(strings.Trim(said[:i], "[]")), strconv.FormatUint(5900+n, 10))
}
