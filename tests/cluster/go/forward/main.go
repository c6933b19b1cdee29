// Command forward accepts on the listening socket that it is given as standard input and carries each connection to the
// address in its first argument. Its caller makes the socket in one network namespace and starts it in another: a socket
// stays in the namespace it was made in, so it is a bridge between the two.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: forward ADDRESS, with a listening socket as standard input")
	}
	listener, err := net.FileListener(os.Stdin)
	if err != nil {
		fail(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "forward:", err)
			time.Sleep(50 * time.Millisecond) // out of file descriptors, say: others will be freed
			continue
		}
		go carry(client.(*net.TCPConn), os.Args[1])
	}
}

func carry(client *net.TCPConn, address string) {
	defer client.Close()
	connection, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		_ = client.SetLinger(0) // a reset, which is what the caller would get from a closed port
		return
	}
	server := connection.(*net.TCPConn)
	defer server.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(client, server)
	_ = client.CloseWrite()
	<-done
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, "forward:", reason)
	os.Exit(1)
}
