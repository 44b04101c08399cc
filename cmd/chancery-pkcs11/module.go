package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"

	"chancery/internal/store/token/wire"
)

// refusal is an answer that is not OK.
type refusal struct {
	code wire.Code
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code wire.Code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// module is the library with what is open in it.
type module struct {
	path string

	mu     sync.Mutex // guards what follows, and makes logins come one after another
	lib    *pkcs11.Ctx
	tokens map[uint]*token // by slot
	keys   []*key
}

// token is a token in a slot, with the session that keeps the login.
type token struct {
	slot   uint
	info   pkcs11.TokenInfo
	keeper pkcs11.SessionHandle
	shared sync.Mutex // held while the keeper signs, where the token takes no more sessions
}

// key is an opened private key.
type key struct {
	token   *token
	object  pkcs11.ObjectHandle
	wire    wire.Key
	keyType uint
}

// ready loads and initialises the library once. One that says that it is initialised already is taken at its word: another
// part of this process cannot have done it, but some wrappers answer so.
func (m *module) ready() error {
	if m.lib != nil {
		return nil
	}
	lib := pkcs11.New(m.path)
	if lib == nil {
		return refuse(wire.Module, "the library %s cannot be loaded: it is no shared object of this machine, or lacks another one", m.path)
	}
	if err := lib.Initialize(); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		lib.Destroy()
		return refuse(wire.Module, "the library %s cannot be initialised: %v", m.path, err)
	}
	m.lib, m.tokens = lib, map[uint]*token{}
	return nil
}

// look finds the token that is selected, and asks nothing of it that needs a PIN.
func (m *module) look(selector wire.Selector) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.selected(selector)
	return err
}

func (m *module) selected(selector wire.Selector) (*token, error) {
	if err := m.ready(); err != nil {
		return nil, err
	}
	return m.token(selector)
}

// open finds the one key that is selected, and logs in where nobody did yet.
func (m *module) open(selector wire.Selector, pin string) (*key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.selected(selector)
	if err != nil {
		return nil, err
	}
	if err := m.login(t, pin, selector.Careful); err != nil {
		return nil, err
	}
	k, err := m.find(t, selector)
	if err != nil {
		return nil, err
	}
	k.wire.Number = uint32(len(m.keys))
	m.keys = append(m.keys, k)
	return k, nil
}

func (m *module) key(number uint32) (*key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if uint64(number) >= uint64(len(m.keys)) {
		return nil, refuse(wire.Refused, "there is no opened key %d", number)
	}
	return m.keys[number], nil
}

// token finds the slot whose token is meant: by what the token says of itself, since libraries number slots as they like.
func (m *module) token(s wire.Selector) (*token, error) {
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return nil, judge("list the slots", err)
	}
	var found []*token
	var seen []string
	for _, slot := range slots {
		info, err := m.lib.GetTokenInfo(slot)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // a reader whose card was just taken out, or a token that holds nothing
		}
		seen = append(seen, fmt.Sprintf("%q (serial %s)", info.Label, info.SerialNumber))
		fits := s.Slot == nil || *s.Slot == uint64(slot)
		for _, pair := range [][2]string{
			{s.Token, info.Label}, {s.Serial, info.SerialNumber}, {s.Manufacturer, info.ManufacturerID}, {s.Model, info.Model},
		} {
			fits = fits && (pair[0] == "" || pair[0] == trim(pair[1]))
		}
		if fits {
			found = append(found, &token{slot: slot, info: info})
		}
	}
	switch {
	case len(found) > 1:
		return nil, refuse(wire.Object, "%d tokens fit: the serial number tells them apart", len(found))
	case len(found) == 0 && len(seen) == 0:
		return nil, refuse(wire.Absent, "the library %s shows no token", m.path)
	case len(found) == 0:
		return nil, refuse(wire.Absent, "the library %s shows no such token, but %s", m.path, strings.Join(seen[:min(len(seen), 8)], ", "))
	}
	if known := m.tokens[found[0].slot]; known != nil {
		if known.info.SerialNumber != found[0].info.SerialNumber {
			return nil, refuse(wire.Gone, "slot %d has another token than it had", known.slot)
		}
		known.info.Flags = found[0].info.Flags
		return known, nil
	}
	return found[0], nil
}

// trim takes off the blanks with which PKCS #11 pads.
func trim(text string) string { return strings.TrimRight(text, " \x00") }

// login logs in once for the whole process. It tries no PIN where the token says that one more failure locks it.
func (m *module) login(t *token, pin string, careful bool) error {
	if m.tokens[t.slot] != nil {
		return nil
	}
	session, err := m.lib.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return judge("open a session", err)
	}
	if t.info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
		err = m.authenticate(t, session, pin, careful)
	}
	if err != nil {
		_ = m.lib.CloseSession(session)
		return err
	}
	t.keeper = session
	m.tokens[t.slot] = t
	return nil
}

func (m *module) authenticate(t *token, session pkcs11.SessionHandle, pin string, careful bool) error {
	switch flags := t.info.Flags; {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return refuse(wire.Locked, "its user PIN is locked; its security officer unlocks it")
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return refuse(wire.Locked, "one more wrong PIN locks it, so none is tried: log in by hand with the right one (pkcs11-tool --login), which resets the count")
	case careful && flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		return refuse(wire.Locked, "a wrong PIN was counted, and nobody knows whether it was the last one tried: log in by hand (pkcs11-tool --login), "+
			"which resets the count")
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return refuse(wire.Locked, "it has no user PIN yet")
	case pin == "" && flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0:
		return refuse(wire.Unable, "it takes its PIN from a keypad of its own, so it cannot serve a node that restarts by itself")
	case pin == "":
		return refuse(wire.Locked, "it wants a PIN, and none is given")
	}
	err := m.lib.Login(session, pkcs11.CKU_USER, pin)
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return err
	}
	switch uint(code) {
	case pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		return nil
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
		return refuse(wire.PIN, "it refuses the PIN (%s)", name(code))
	case pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return refuse(wire.Locked, "it takes no PIN (%s)", name(code))
	}
	return judge("log in", err)
}

// goneCodes are what a library answers when the token, a session or its own state went away. The general ones belong here
// too, since libraries give them for a connection that broke.
var goneCodes = []uint{
	pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
	pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
	pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_GENERAL_ERROR,
	pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_OPERATION_ACTIVE,
}

// judge gives an error of the library its code.
func judge(doing string, err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if slices.Contains(goneCodes, uint(code)) {
		return refuse(wire.Gone, "%s: %s", doing, name(code))
	}
	return refuse(wire.Failed, "%s: %s", doing, name(code))
}

// name is the error's name in the standard, CKR_…
func name(code pkcs11.Error) string {
	text := code.Error()
	if _, after, ok := strings.Cut(text, "CKR_"); ok {
		return "CKR_" + after
	}
	return text
}

// sessions are those of one connection; its requests come one at a time, as PKCS #11 wants of a session.
type sessions struct {
	module *module
	bySlot map[uint]session
}

type session struct {
	handle pkcs11.SessionHandle
	shared *sync.Mutex // set where it is the keeper
}

func (s *sessions) close() {
	for _, open := range s.bySlot {
		if open.shared == nil {
			_ = s.module.lib.CloseSession(open.handle)
		}
	}
}

func (s *sessions) answer(verb byte, fields [][]byte) ([]byte, error) {
	var selector wire.Selector
	if verb != wire.Sign && len(fields) > 0 {
		if err := json.Unmarshal(fields[0], &selector); err != nil {
			return nil, refuse(wire.Refused, "which key is meant: %v", err)
		}
	}
	switch {
	case verb == wire.Look && len(fields) == 1:
		return nil, s.module.look(selector)
	case verb == wire.Open && len(fields) == 2:
		k, err := s.module.open(selector, string(fields[1]))
		if err != nil {
			return nil, err
		}
		return json.Marshal(k.wire)
	case verb == wire.Sign && len(fields) == 3 && len(fields[0]) == 4 && len(fields[1]) == 1:
		return s.sign(fields[0], wire.Mechanism(fields[1][0]), fields[2])
	}
	return nil, refuse(wire.Refused, "a request of verb %d with %d fields", verb, len(fields))
}

// on returns this connection's session with a token.
func (s *sessions) on(t *token) (session, error) {
	if open, ok := s.bySlot[t.slot]; ok {
		return open, nil
	}
	handle, err := s.module.lib.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION)
	open := session{handle: handle}
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) {
		open, err = session{t.keeper, &t.shared}, nil
	}
	if err != nil {
		return session{}, judge("open a session", err)
	}
	s.bySlot[t.slot] = open
	return open, nil
}
