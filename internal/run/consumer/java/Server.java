import java.io.FileInputStream;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.security.KeyStore;
import java.security.Principal;
import java.security.PrivateKey;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509ExtendedKeyManager;
import javax.net.ssl.X509ExtendedTrustManager;

/**
 * A server that wants client certificates and says hello. It watches its stores, as Jetty, Tomcat and Spring Boot can be told to:
 * stores that changed are in use for the next connection; those that it cannot use are not, and the old ones stay.
 *
 * Arguments: address, port, key store, its password's file, trust store, its password's file.
 */
public class Server {
    static volatile X509ExtendedKeyManager keys;
    static volatile X509ExtendedTrustManager trust;
    static FileTime[] seen;

    public static void main(String[] args) throws Exception {
        load(args);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(new KeyManager[] {new Keys()}, new TrustManager[] {new Trust()}, null);
        SSLServerSocket server = (SSLServerSocket) context.getServerSocketFactory()
            .createServerSocket(Integer.parseInt(args[1]), 50, InetAddress.getByName(args[0]));
        server.setNeedClientAuth(true);
        Thread watch = new Thread(() -> watch(args));
        watch.setDaemon(true);
        watch.start();
        while (true) {
            SSLSocket connection = (SSLSocket) server.accept();
            new Thread(() -> answer(connection)).start();
        }
    }

    static void answer(SSLSocket connection) {
        try (connection) {
            connection.setSoTimeout(10_000);
            InputStream in = connection.getInputStream();
            for (int n = 0; n < 4; ) { // to the empty line
                int c = in.read();
                if (c < 0) {
                    return;
                }
                n = c == (n % 2 == 0 ? '\r' : '\n') ? n + 1 : 0;
            }
            connection.getOutputStream().write("HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n".getBytes(StandardCharsets.US_ASCII));
        } catch (Exception e) {
            System.err.println("refused: " + e.getMessage());
        }
    }

    static void watch(String[] args) {
        while (true) {
            try {
                Thread.sleep(100);
                if (!java.util.Arrays.equals(seen, times(args))) {
                    load(args);
                    System.err.println("loaded");
                }
            } catch (Exception e) {
                System.err.println("not loaded: " + e.getMessage());
            }
        }
    }

    static FileTime[] times(String[] args) throws Exception {
        return new FileTime[] {Files.getLastModifiedTime(Path.of(args[2])), Files.getLastModifiedTime(Path.of(args[4]))};
    }

    static void load(String[] args) throws Exception {
        seen = times(args);
        char[] password = password(args[3]);
        KeyManagerFactory k = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        k.init(store(args[2], password), password);
        TrustManagerFactory t = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        t.init(store(args[4], password(args[5])));
        keys = (X509ExtendedKeyManager) k.getKeyManagers()[0];
        trust = (X509ExtendedTrustManager) t.getTrustManagers()[0];
    }

    static char[] password(String file) throws Exception {
        return Files.readAllLines(Path.of(file)).get(0).toCharArray();
    }

    static KeyStore store(String file, char[] password) throws Exception {
        KeyStore s = KeyStore.getInstance("PKCS12"); // of either kind: keystore.type.compat
        try (InputStream in = new FileInputStream(file)) {
            s.load(in, password);
        }
        return s;
    }

    /** The keys that are in use at a handshake. */
    static class Keys extends X509ExtendedKeyManager {
        public String[] getClientAliases(String type, Principal[] issuers) { return keys.getClientAliases(type, issuers); }
        public String chooseClientAlias(String[] types, Principal[] issuers, Socket s) { return keys.chooseClientAlias(types, issuers, s); }
        public String[] getServerAliases(String type, Principal[] issuers) { return keys.getServerAliases(type, issuers); }
        public String chooseServerAlias(String type, Principal[] issuers, Socket s) { return keys.chooseServerAlias(type, issuers, s); }
        public String chooseEngineServerAlias(String type, Principal[] issuers, SSLEngine e) { return keys.chooseEngineServerAlias(type, issuers, e); }
        public X509Certificate[] getCertificateChain(String alias) { return keys.getCertificateChain(alias); }
        public PrivateKey getPrivateKey(String alias) { return keys.getPrivateKey(alias); }
    }

    /** Whom the server believes at a handshake. */
    static class Trust extends X509ExtendedTrustManager {
        public void checkClientTrusted(X509Certificate[] p, String a) throws CertificateException { trust.checkClientTrusted(p, a); }
        public void checkClientTrusted(X509Certificate[] p, String a, Socket s) throws CertificateException { trust.checkClientTrusted(p, a, s); }
        public void checkClientTrusted(X509Certificate[] p, String a, SSLEngine e) throws CertificateException { trust.checkClientTrusted(p, a, e); }
        public void checkServerTrusted(X509Certificate[] p, String a) throws CertificateException { trust.checkServerTrusted(p, a); }
        public void checkServerTrusted(X509Certificate[] p, String a, Socket s) throws CertificateException { trust.checkServerTrusted(p, a, s); }
        public void checkServerTrusted(X509Certificate[] p, String a, SSLEngine e) throws CertificateException { trust.checkServerTrusted(p, a, e); }
        public X509Certificate[] getAcceptedIssuers() { return trust.getAcceptedIssuers(); }
    }
}
