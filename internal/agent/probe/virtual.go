package probe

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// The numbers of RFC 6143 section 7.1.2 and of VeNCrypt that are used here.
const (
	vncVeNCrypt = 19  // the security type
	vncFirst509 = 260 // X509None, X509Vnc and X509Plain: TLS with certificates, then what the name says
	vncLast509  = 262
	vncSASL509  = 264
)

// startVNC agrees on RFB 3.8 and on TLS with certificates by VeNCrypt 0.2. Its other subtypes are TLS without certificates,
// in which nothing can be seen.
func startVNC(in *bufio.Reader, out io.Writer, _ string) error {
	greeting := make([]byte, 12)
	if _, err := io.ReadFull(in, greeting); err != nil {
		return err
	}
	if string(greeting[:4]) != "RFB " || string(greeting[4:7]) != "003" || greeting[11] != '\n' {
		return fmt.Errorf("%w: the greeting is %q, not that of RFB 3", ErrNotTLS, printable(string(greeting)))
	}
	if string(greeting[8:11]) < "007" {
		return fmt.Errorf("%w: the server speaks RFB %s, which has no VeNCrypt", ErrNotTLS, printable(string(greeting[4:11])))
	}
	if _, err := io.WriteString(out, "RFB 003.008\n"); err != nil {
		return err
	}
	types, err := octets(in)
	if err != nil {
		return err
	}
	if len(types) == 0 {
		return fmt.Errorf("%w: the server refuses every connection", ErrNotTLS)
	}
	if !slices.Contains(types, vncVeNCrypt) {
		return fmt.Errorf("%w: the server offers the security types %v, and not VeNCrypt (19)", ErrNotTLS, types)
	}
	if _, err := out.Write([]byte{vncVeNCrypt}); err != nil {
		return err
	}
	return startVeNCrypt(in, out)
}

func startVeNCrypt(in *bufio.Reader, out io.Writer) error {
	var version [2]byte
	if _, err := io.ReadFull(in, version[:]); err != nil {
		return err
	}
	if version[0] == 0 && version[1] < 2 {
		return fmt.Errorf("%w: VeNCrypt %d.%d, where 0.2 is spoken here", ErrNotTLS, version[0], version[1])
	}
	if _, err := out.Write([]byte{0, 2}); err != nil {
		return err
	}
	if answer, err := in.ReadByte(); err != nil || answer != 0 {
		return cmp.Or(err, fmt.Errorf("%w: the server does not speak VeNCrypt 0.2", ErrNotTLS))
	}
	count, err := in.ReadByte()
	if err != nil {
		return err
	}
	offered := make([]uint32, count)
	if err := binary.Read(in, binary.BigEndian, offered); err != nil {
		return err
	}
	i := slices.IndexFunc(offered, func(n uint32) bool { return n >= vncFirst509 && n <= vncLast509 || n == vncSASL509 })
	if i < 0 {
		return fmt.Errorf("%w: the server offers the VeNCrypt subtypes %v, none of which has a certificate", ErrNotTLS, offered)
	}
	if _, err := out.Write(binary.BigEndian.AppendUint32(nil, offered[i])); err != nil {
		return err
	}
	if answer, err := in.ReadByte(); err != nil || answer != 1 {
		return cmp.Or(err, fmt.Errorf("%w: the server takes back the subtype %d that it offered", ErrNotTLS, offered[i]))
	}
	return nil
}

// octets reads a list with its length in one octet.
func octets(in *bufio.Reader) ([]byte, error) {
	n, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	list := make([]byte, n)
	_, err = io.ReadFull(in, list)
	return list, err
}

// The numbers of the NBD protocol that are used here.
const (
	nbdMagic        = "NBDMAGIC"
	nbdOptions      = "IHAVEOPT"
	nbdFixed        = 1 // the flag of fixed newstyle, ours and the server's; without it there are no replies to options
	nbdStartTLS     = 5
	nbdReply        = 0x3e889045565a9
	nbdAcknowledged = 1
)

// startNBD asks for TLS by NBD_OPT_STARTTLS.
func startNBD(in *bufio.Reader, out io.Writer, _ string) error {
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(in, greeting); err != nil {
		return err
	}
	if string(greeting[:8]) != nbdMagic || string(greeting[8:16]) != nbdOptions {
		return fmt.Errorf("%w: the greeting is %q, not that of newstyle NBD", ErrNotTLS, printable(string(greeting)))
	}
	if greeting[17]&nbdFixed == 0 {
		return fmt.Errorf("%w: the server does not speak fixed newstyle NBD, and so knows no TLS", ErrNotTLS)
	}
	ask := binary.BigEndian.AppendUint32(nil, nbdFixed)
	ask = append(ask, nbdOptions...)
	ask = binary.BigEndian.AppendUint32(ask, nbdStartTLS)
	if _, err := out.Write(binary.BigEndian.AppendUint32(ask, 0)); err != nil {
		return err
	}
	var reply struct {
		Magic                uint64
		Option, Type, Length uint32
	}
	if err := binary.Read(in, binary.BigEndian, &reply); err != nil {
		return err
	}
	switch {
	case reply.Magic != nbdReply || reply.Option != nbdStartTLS:
		return fmt.Errorf("%w: the answer is none to NBD_OPT_STARTTLS", ErrNotTLS)
	case reply.Type == nbdAcknowledged && reply.Length == 0:
		return nil
	case reply.Length > startTLSLimit:
		return fmt.Errorf("%w: an answer of %d octets", ErrNotTLS, reply.Length)
	}
	why := make([]byte, reply.Length)
	if _, err := io.ReadFull(in, why); err != nil {
		return err
	}
	return fmt.Errorf("%w: the server answers NBD_OPT_STARTTLS with %#x: %s", ErrNotTLS, reply.Type, printable(string(why)))
}
