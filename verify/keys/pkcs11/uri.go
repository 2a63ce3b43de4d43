package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Scheme is what a PKCS #11 URI begins with.
const Scheme = "pkcs11:"

// uri is what of a PKCS #11 URI (RFC 7512) finds a key.
type uri struct {
	token, manufacturer, model, serial, slot string // the token; what is "" is not asked
	object                                   string // label of the key
	id                                       []byte // CKA_ID of the key
	module                                   string // path of the library
	pin                                      string
	hasPIN                                   bool
}

func parseURI(s string) (*uri, error) {
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return nil, fmt.Errorf("does not begin with %s", Scheme)
	}
	u := new(uri)
	path, query, _ := strings.Cut(rest, "?")
	seen := map[string]bool{}
	each := func(list, sep string, set func(name, value string) error) error {
		if list == "" {
			return nil
		}
		for _, part := range strings.Split(list, sep) {
			name, raw, ok := strings.Cut(part, "=")
			value, err := url.PathUnescape(raw)
			switch {
			case !ok || name == "":
				return fmt.Errorf("%q is not name=value", part)
			case err != nil:
				return fmt.Errorf("%s=: %w", name, err)
			case seen[name]:
				return fmt.Errorf("%s= stands twice", name)
			}
			seen[name] = true
			if err := set(name, value); err != nil {
				return err
			}
		}
		return nil
	}
	err := each(path, ";", func(name, value string) error {
		switch name {
		case "token":
			u.token = value
		case "manufacturer":
			u.manufacturer = value
		case "model":
			u.model = value
		case "serial":
			u.serial = value
		case "slot-id":
			u.slot = value
		case "object":
			u.object = value
		case "id":
			u.id = []byte(value)
		case "type":
			if value != "private" {
				return fmt.Errorf("type=%s is not a private key", value)
			}
		default:
			return fmt.Errorf("%s= is not supported", name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = each(query, "&", func(name, value string) error {
		switch name {
		case "module-path":
			u.module = value
		case "pin-value":
			u.pin, u.hasPIN = value, true
		case "pin-source":
			b, err := os.ReadFile(strings.TrimPrefix(strings.TrimPrefix(value, "file:"), "//"))
			if err != nil {
				return fmt.Errorf("pin-source: %w", err)
			}
			u.pin, u.hasPIN = strings.TrimRight(string(b), "\r\n"), true
		default:
			return fmt.Errorf("%s= is not supported", name)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case seen["pin-value"] && seen["pin-source"]:
		return nil, errors.New("pin-value= and pin-source= exclude each other")
	case u.object == "" && len(u.id) == 0:
		return nil, errors.New("names no key: object= (its label) or id= is needed")
	}
	return u, nil
}

// String is the URI without PIN and module, for messages.
func (u *uri) String() string {
	var parts []string
	for _, p := range [...][2]string{
		{"token", u.token},
		{"manufacturer", u.manufacturer},
		{"model", u.model},
		{"serial", u.serial},
		{"slot-id", u.slot},
		{"object", u.object},
	} {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+strings.ReplaceAll(url.PathEscape(p[1]), ";", "%3B"))
		}
	}
	if len(u.id) > 0 {
		id := "id="
		for _, b := range u.id {
			id += fmt.Sprintf("%%%02X", b)
		}
		parts = append(parts, id)
	}
	return Scheme + strings.Join(parts, ";")
}
