package hermes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2026, 11, 23, 21, 0, 0, 0, time.UTC)

func create(t testing.TB, capBytes int64) *Log {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "log"), capBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Finish() })
	return l
}

// collect reads to the end and checks that offsets follow each other.
func collect(seq iter.Seq2[Entry, error], from int64) (text []string, data []byte, err error) {
	next := from
	for e, err := range seq {
		if err != nil {
			return text, data, err
		}
		if e.Offset != next {
			return text, data, fmt.Errorf("entry at %d, want %d", e.Offset, next)
		}
		next += int64(len(e.Data))
		data = append(data, e.Data...)
		text = append(text, e.Stream+":"+string(e.Data))
	}
	return text, data, nil
}

func decodeFile(t testing.TB, path string) ([]string, []byte, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return collect(Decode(bytes.NewReader(b)), 0)
}

func TestBothStreamsShareOneOffset(t *testing.T) {
	l := create(t, 0)
	for _, a := range []struct{ stream, data string }{{Stdout, "out\n"}, {Stderr, "err\n"}, {Stdout, "more"}} {
		if err := l.Append(a.stream, t0, []byte(a.data)); err != nil {
			t.Fatal(err)
		}
	}
	want := "stdout:out\n|stderr:err\n|stdout:more"
	got, _, err := collect(l.Read(t.Context(), 0, false), 0)
	if err != nil || strings.Join(got, "|") != want {
		t.Errorf("live: %q, %v", got, err)
	}
	got, _, err = collect(l.Read(t.Context(), 6, false), 6)
	if err != nil || strings.Join(got, "|") != "stderr:r\n|stdout:more" {
		t.Errorf("from the middle of a record: %q, %v", got, err)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	got, _, err = decodeFile(t, l.Path())
	if err != nil || strings.Join(got, "|") != want {
		t.Errorf("later: %q, %v", got, err)
	}
	if l.Bytes() != 12 || l.Truncated() {
		t.Errorf("bytes %d, truncated %v", l.Bytes(), l.Truncated())
	}
}

func TestTimesTravelInMicroseconds(t *testing.T) {
	l := create(t, 0)
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	for _, a := range []time.Time{at, at.Add(1500 * time.Microsecond), at} { // the clock stepped back
		if err := l.Append(Stdout, a, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	var got []time.Duration
	for e, err := range l.Read(t.Context(), 0, false) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Time.Sub(at))
	}
	if want := "[0s 1.5ms 1.5ms]"; fmt.Sprint(got) != want {
		t.Errorf("times %v, want %v", got, want)
	}
}

func TestTheCapEndsDeliveryWithAMark(t *testing.T) {
	l := create(t, 10)
	followed := make(chan string, 1)
	go func() {
		got, _, err := collect(l.Read(context.Background(), 0, true), 0)
		followed <- fmt.Sprint(strings.Join(got, "|"), err)
	}()
	for range 3 {
		if err := l.Append(Stderr, t0, []byte("sixsix")); err != nil {
			t.Fatal(err)
		}
	}
	want := "stderr:sixsix|stderr:sixs|truncated:"
	select {
	case got := <-followed: // before Finish
		if got != want+"<nil>" {
			t.Errorf("follower: %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the follower of a full log does not come to an end")
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	got, _, err := decodeFile(t, l.Path())
	if err != nil || strings.Join(got, "|") != want {
		t.Errorf("later: %q, %v", got, err)
	}
	if l.Bytes() != 10 || !l.Truncated() {
		t.Errorf("bytes %d, truncated %v", l.Bytes(), l.Truncated())
	}
}

func TestALogThatIsCut(t *testing.T) {
	l := create(t, 0)
	if err := l.Append(Stdout, t0, []byte("good")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Cut(t0), l.Cut(t0), l.Append(Stdout, t0, []byte("too late")), l.Finish(), l.Cut(t0)); err != nil {
		t.Fatal(err)
	}
	got, _, err := decodeFile(t, l.Path())
	if err != nil || strings.Join(got, "|") != "stdout:good|truncated:" || !l.Truncated() {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestExactlyTheCapIsNotTruncated(t *testing.T) {
	l := create(t, 4)
	if err := l.Append(Stdout, t0, []byte("four")); err != nil {
		t.Fatal(err)
	}
	if l.Truncated() {
		t.Error("truncated at exactly the cap")
	}
}

func TestTinyPiecesCannotFillTheDisk(t *testing.T) {
	const capBytes = 100 << 10
	l := create(t, capBytes)
	at := t0
	for i := range capBytes {
		at = at.Add(time.Hour) // the longest framing
		if err := l.Append([]string{Stdout, Stderr}[i%2], at, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	if limit := fileRoom(capBytes) + 256; st.Size() > limit {
		t.Errorf("the file took %d bytes, more than %d", st.Size(), limit)
	}
	if !l.Truncated() {
		t.Error("not marked as truncated")
	}
	if _, data, err := decodeFile(t, l.Path()); err != nil || int64(len(data)) != l.Bytes() {
		t.Errorf("%d bytes of %d, %v", len(data), l.Bytes(), err)
	}
}

// TestFollowersGetTheSameBytes has fast, slow and late followers from any
// offset beside a writer.
func TestFollowersGetTheSameBytes(t *testing.T) {
	l := create(t, 4<<20)
	var want []byte
	for i := range 300 {
		want = append(want, bytes.Repeat([]byte{byte(i)}, 1+i*37%9000)...)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			from := int64(i) * int64(len(want)) / 9
			var got []byte
			for e, err := range l.Read(context.Background(), from, true) {
				if err != nil {
					t.Errorf("follower %d: %v", i, err)
					return
				}
				if e.Offset != from+int64(len(got)) {
					t.Errorf("follower %d: gap at %d", i, e.Offset)
					return
				}
				got = append(got, e.Data...)
				if i%2 == 0 && len(got)%7 == 0 {
					time.Sleep(50 * time.Microsecond)
				}
			}
			if !bytes.Equal(got, want[from:]) {
				t.Errorf("follower %d: %d bytes of %d, or others", i, len(got), len(want)-int(from))
			}
		}()
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(3000))
		if err := l.Append(Stdout, time.Now(), rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestAFollowerEndsWithItsContext(t *testing.T) {
	l := create(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, _, err := collect(l.Read(ctx, 0, true), 0)
		done <- err
	}()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the follower outlives its context")
	}
}

func TestReadersOutliveTheFile(t *testing.T) {
	l := create(t, 0)
	if err := l.Append(Stdout, t0, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	for e, err := range l.Read(t.Context(), 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if string(e.Data) != "still here" {
			t.Errorf("got %q", e.Data)
		}
		if err := errors.Join(l.Finish(), os.Remove(l.Path())); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := collect(l.Read(t.Context(), 0, false), 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("reading a removed log: %v", err)
	}
}

func TestMisuse(t *testing.T) {
	l := create(t, 0)
	if err := l.Append("stdin", t0, []byte("x")); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a third stream: %v", err)
	}
	if _, _, err := collect(l.Read(t.Context(), -1, false), -1); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a negative offset: %v", err)
	}
	if _, err := Create(l.Path(), 0); !errors.Is(err, os.ErrExist) {
		t.Errorf("creating twice: %v", err)
	}
	if err := errors.Join(l.Finish(), l.Finish()); err != nil {
		t.Errorf("finishing twice: %v", err)
	}
	if err := l.Append(Stdout, t0, []byte("x")); !fault.Is(err, fault.Conflict) {
		t.Errorf("after the end: %v", err)
	}
}

// TestATornEndIsCut cuts the file of a dead writer at every byte.
func TestATornEndIsCut(t *testing.T) {
	l := create(t, 0)
	for i := range 5 {
		if err := l.Append([]string{Stdout, Stderr}[i%2], t0.Add(time.Duration(i)*time.Second), []byte(fmt.Sprint("line ", i, "\n"))); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := collect(l.Read(t.Context(), 0, false), 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "torn")
	for n := headerSize; n <= len(whole); n++ {
		torn := append(bytes.Clone(whole[:n]), make([]byte, n%3)...) // some file systems leave zeros
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Recover(path)
		if err != nil {
			t.Fatalf("at %d: %v", n, err)
		}
		got, data, err := decodeFile(t, path)
		if err != nil {
			t.Fatalf("at %d: the recovered log: %v", n, err)
		}
		if strings.Join(got, "") != strings.Join(all[:len(got)], "") || int64(len(data)) != r.Bytes() {
			t.Fatalf("at %d: %q", n, got)
		}
		live, _, err := collect(r.Read(t.Context(), 0, true), 0)
		if err != nil || strings.Join(live, "") != strings.Join(got, "") {
			t.Fatalf("at %d: live %q, %v", n, live, err)
		}
	}
	if got, _, err := decodeFile(t, path); err != nil || len(got) != 5 {
		t.Errorf("of the whole file: %q, %v", got, err)
	}
	again, err := Recover(path)
	if err != nil || again.Bytes() != l.Bytes() {
		t.Errorf("recovering twice: %v", err)
	}
}

func TestAnUnfinishedLogSaysSo(t *testing.T) {
	l := create(t, 0)
	if err := l.Append(Stdout, t0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	got, _, err := decodeFile(t, l.Path())
	if !errors.Is(err, ErrUnfinished) || len(got) != 1 {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Recover(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("recovering nothing: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("this is no log at all, but long enough"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(other); err == nil {
		t.Error("took another file for a log")
	}
	if b, _ := os.ReadFile(other); !strings.HasPrefix(string(b), "this is no log") {
		t.Error("changed another file")
	}
}

// TestEveryChangedByteIsSeen flips each byte of a log.
func TestEveryChangedByteIsSeen(t *testing.T) {
	l := create(t, 8)
	for i := range 3 {
		if err := l.Append([]string{Stdout, Stderr}[i%2], t0, []byte("abcd")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if _, _, err := collect(Decode(bytes.NewReader(b)), 0); err == nil {
			t.Errorf("a change of byte %d of %d was not seen", i, len(whole))
		}
	}
	if _, _, err := collect(Decode(bytes.NewReader(append(whole, 0))), 0); !fault.Is(err, fault.Conflict) {
		t.Errorf("something behind the end: %v", err)
	}
}

// TestAgainstAModel appends anything and reads from anywhere, live and later.
func TestAgainstAModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "log")
		_ = os.Remove(path)
		capBytes := rapid.Int64Range(1, 200<<10).Draw(t, "cap")
		l, err := Create(path, capBytes)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Finish() }()
		var want []byte
		for i := range rapid.IntRange(0, 20).Draw(t, "appends") {
			data := bytes.Repeat([]byte{byte(i)}, rapid.IntRange(0, 80<<10).Draw(t, "bytes"))
			if err := l.Append(rapid.SampledFrom([]string{Stdout, Stderr}).Draw(t, "stream"), t0, data); err != nil {
				t.Fatal(err)
			}
			want = append(want, data...)
		}
		cut := int64(len(want)) > capBytes
		want = want[:min(int64(len(want)), capBytes)]
		if l.Truncated() != cut || l.Bytes() != int64(len(want)) {
			t.Fatalf("truncated %v, want %v; %d bytes, want %d", l.Truncated(), cut, l.Bytes(), len(want))
		}
		from := rapid.Int64Range(0, int64(len(want))).Draw(t, "from")
		if _, got, err := collect(l.Read(context.Background(), from, false), from); err != nil || !bytes.Equal(got, want[from:]) {
			t.Fatalf("live from %d: %d bytes, %v", from, len(got), err)
		}
		if err := l.Finish(); err != nil {
			t.Fatal(err)
		}
		if _, got, err := collect(l.Read(context.Background(), from, true), from); err != nil || !bytes.Equal(got, want[from:]) {
			t.Fatalf("ended, from %d: %d bytes, %v", from, len(got), err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := collect(Decode(bytes.NewReader(b)), 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("decoded: %d bytes of %d, %v", len(got), len(want), err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	l := create(f, 8)
	_ = l.Append(Stdout, t0, []byte("hello"))
	_ = l.Append(Stderr, t0, []byte("world"))
	_ = l.Finish()
	b, err := os.ReadFile(l.Path())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte(magic))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := collect(Decode(bytes.NewReader(b)), 0); err != nil {
			return
		}
		path := filepath.Join(dir, fmt.Sprint(rand.Uint64()))
		defer func() { _ = os.Remove(path) }()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(path); err != nil {
			t.Errorf("a log that can be read cannot be recovered: %v", err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("recovering changed a log with an end: %v", err)
		}
	})
}

// TestADiskThatTakesNoMore has a file that cannot be written any longer.
func TestADiskThatTakesNoMore(t *testing.T) {
	l := create(t, 0)
	if err := l.Append(Stdout, t0, []byte("good")); err != nil {
		t.Fatal(err)
	}
	good, broken := l.f, func() *os.File { f, _ := os.Open(l.Path()); return f }()
	l.f = broken
	if err := l.Append(Stdout, t0, []byte("lost")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
	if err := l.Append(Stdout, t0, []byte("lost too")); err != nil {
		t.Errorf("told twice: %v", err)
	}
	want := "stdout:good|truncated:"
	if got, _, err := collect(l.Read(t.Context(), 0, true), 0); err != nil || strings.Join(got, "|") != want {
		t.Errorf("live: %q, %v", got, err)
	}
	l.f = good // room again
	if err := errors.Join(l.Finish(), broken.Close()); err != nil {
		t.Fatal(err)
	}
	if got, _, err := decodeFile(t, l.Path()); err != nil || strings.Join(got, "|") != want {
		t.Errorf("later: %q, %v", got, err)
	}
}
