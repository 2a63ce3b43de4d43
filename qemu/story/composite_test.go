package story

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// composite is a USB device that QEMU does not have: mass storage with a keyboard beside it, in one device of full speed. It
// speaks usbredir (docs/usb-redirection-protocol.md of that project, with the three capabilities that an xHCI needs) with QEMU's
// usb-redir and answers what enumeration asks; transfers to its interfaces stall. It returns QEMU's arguments for it.
func composite(t *testing.T, port string) []string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "redir")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := redirect(conn); err != nil && !errors.Is(err, io.EOF) {
				t.Logf("composite device: %v", err)
			}
			conn.Close()
		}
	}()
	return []string{"-chardev", "socket,id=redir,path=" + socket, "-device", "usb-redir,chardev=redir,bus=xhci.0,port=" + port}
}

var (
	compositeDevice = []byte{18, 1, 0, 2, 0, 0, 0, 64, 0x34, 0x12, 0x78, 0x56, 0, 1, 0, 0, 0, 1}
	compositeConfig = []byte{
		9, 2, 57, 0, 2, 1, 0, 0x80, 50,
		9, 4, 0, 0, 2, 8, 6, 0x50, 0, 7, 5, 0x81, 2, 64, 0, 0, 7, 5, 0x02, 2, 64, 0, 0,
		9, 4, 1, 0, 1, 3, 1, 1, 0, 9, 0x21, 0x11, 1, 0, 1, 0x22, 63, 0, 7, 5, 0x83, 3, 8, 0, 10,
	}
)

// Packets of usbredir, and its word for a stalled transfer.
const (
	redirHello           = 0
	redirConnect         = 1
	redirInterfaces      = 4
	redirEndpoints       = 5
	redirSetConfig       = 6
	redirGetConfig       = 7
	redirConfigStatus    = 8
	redirSetAlt          = 9
	redirAltStatus       = 11
	redirInterrupt       = 15
	redirInterruptStatus = 17
	redirControl         = 100
	redirBulk            = 101

	redirStall = 4
)

func redirect(conn io.ReadWriter) error {
	size := 12 // of a header: type u32, length u32, id u32, after the hellos u64
	send := func(kind byte, id uint64, body ...byte) error {
		head := binary.LittleEndian.AppendUint32([]byte{kind, 0, 0, 0}, uint32(len(body)))
		head = binary.LittleEndian.AppendUint64(head, id)[:size]
		_, err := conn.Write(append(head, body...))
		return err
	}
	hello := make([]byte, 68)
	copy(hello, "lifeboat test")
	hello[64] = 1<<4 | 1<<5 | 1<<6 // sizes of packets, ids of 64 bits, lengths of 32
	interfaces := make([]byte, 4+4*32)
	interfaces[0] = 2
	interfaces[4+1] = 1
	copy(interfaces[4+32:], []byte{8, 3})
	copy(interfaces[4+64:], []byte{6, 1})
	copy(interfaces[4+96:], []byte{0x50, 1})
	endpoints := make([]byte, 5*32) // type, interval, interface, size u16 of each: OUT in the first sixteen, IN behind
	for i := range 32 {
		endpoints[i] = 255
	}
	endpoints[0], endpoints[16] = 0, 0
	endpoints[16+1], endpoints[2], endpoints[16+3] = 2, 2, 3
	endpoints[32+16+3], endpoints[64+16+3] = 10, 1
	for i, size := range map[int]byte{0: 64, 16: 64, 16 + 1: 64, 2: 64, 16 + 3: 8} {
		endpoints[96+2*i] = size
	}
	configuration := byte(0)
	for {
		var head [16]byte
		if _, err := io.ReadFull(conn, head[:size]); err != nil {
			return err
		}
		id := binary.LittleEndian.Uint64(head[8:])
		body := make([]byte, binary.LittleEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		var err error
		switch head[0] {
		case redirHello:
			err = send(redirHello, 0, hello...)
			size = 16
			err = errors.Join(
				err, send(redirInterfaces, 0, interfaces...), send(redirEndpoints, 0, endpoints...),
				send(redirConnect, 0, 1, 0, 0, 0, 0x34, 0x12, 0x78, 0x56),
			)
		case redirSetConfig:
			configuration = body[0]
			err = send(redirConfigStatus, id, 0, configuration)
		case redirGetConfig:
			err = send(redirConfigStatus, id, 0, configuration)
		case redirSetAlt:
			err = send(redirAltStatus, id, 0, body[0], body[1])
		case redirInterrupt:
			err = send(redirInterruptStatus, id, 0, body[0])
		case redirControl: // endpoint, request, request type, status, value u16, index u16, length u16
			const getDescriptor = 6
			var data []byte
			body[3] = 0
			switch {
			case body[1] == getDescriptor && body[5] == 1:
				data = compositeDevice
			case body[1] == getDescriptor && body[5] == 2:
				data = compositeConfig
			case body[2]&0x80 == 0:
			default:
				body[3] = redirStall
			}
			data = data[:min(len(data), int(binary.LittleEndian.Uint16(body[8:])))]
			binary.LittleEndian.PutUint16(body[8:], uint16(len(data)))
			err = send(redirControl, id, append(body[:10:10], data...)...)
		case redirBulk: // endpoint, status, length u16, stream u32, high half of the length u16
			err = send(redirBulk, id, body[0], redirStall, 0, 0, 0, 0, 0, 0, 0, 0)
		}
		if err != nil {
			return err
		}
	}
}
