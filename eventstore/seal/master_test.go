package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongMaster(t *testing.T) {
	t.Parallel()
	right := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := openKeys(t, path, right)
	newKey(t, k)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	next := Master{epoch: 2, key: right.key}
	for _, wrong := range []Master{NewMaster(), next} {
		for _, open := range []func(context.Context, Config) (*Keys, error){Open, OpenReader} {
			_, err := open(t.Context(), Config{Path: path, Master: wrong})
			wantErr(t, "open with the wrong master key", err, ErrMaster)
			if err == nil {
				continue
			}
			if text := err.Error(); !strings.Contains(text, path) || strings.Contains(text, keyText(wrong)) || strings.Contains(text, keyText(right)) {
				t.Errorf("the error is %q, want one that names the file and contains no key", text)
			}
		}
	}
	if _, err := Open(t.Context(), Config{Path: path}); err == nil {
		t.Error("Open without a master key succeeded")
	}
	openKeys(t, path, right)
}

func keyText(m Master) string { return m.Reveal()[len(masterPrefix)+3:] }

func TestMaster(t *testing.T) {
	t.Parallel()
	m := NewMaster()
	loaded, err := LoadMaster("\n " + m.Reveal() + "\r\n")
	if err != nil || !bytes.Equal(loaded.key(), m.key()) || loaded.epoch != 1 {
		t.Fatalf("LoadMaster of the revealed key = %v, %v, want the same key", loaded, err)
	}
	secret := keyText(m)
	for name, text := range map[string]string{
		"an empty text": "", "the key alone": secret, "epoch 0": masterPrefix + ":0:" + secret, "no epoch": masterPrefix + "::" + secret,
		"a short key": m.Reveal()[:len(m.Reveal())-2], "a long key": m.Reveal() + "AA", "a fourth part": m.Reveal() + ":x", "invalid base64": masterPrefix + ":1:" + strings.Repeat("!", 43),
	} {
		if _, err := LoadMaster(text); err == nil {
			t.Errorf("LoadMaster of %s succeeded", name)
		} else if strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("LoadMaster of %s quotes the key: %v", name, err)
		}
	}

	var b bytes.Buffer
	cfg := Config{Path: "keys.db", Master: m}
	type hidden struct{ m Master } // fmt does not call methods of unexported fields
	for _, v := range []any{m, &m, cfg, hidden{m}, &hidden{m}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "v", v)
		if err := json.NewEncoder(&b).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, shown := range []string{secret, fmt.Sprintf("%x", m.key()[:4]), fmt.Sprint(m.key()[:4])[1:], fmt.Sprintf("%#v", m.key()[:4])[7:]} {
		if strings.Contains(b.String(), strings.TrimRight(shown, "]}")) {
			t.Errorf("the output contains part of the key: %s", shown)
		}
	}
}
