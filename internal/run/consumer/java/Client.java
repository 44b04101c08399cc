import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.security.cert.X509Certificate;
import javax.net.ssl.HttpsURLConnection;

/**
 * A client as Java makes it without a word of its own about TLS: stores and passwords are system properties, which are read from
 * files so that no password is an argument. It prints the server's serial number and what it says.
 *
 * Arguments: URL, trust store, its password's file, and for a client's certificate the key store and its password's file.
 */
public class Client {
    public static void main(String[] args) throws Exception {
        System.setProperty("javax.net.ssl.trustStore", args[1]);
        System.setProperty("javax.net.ssl.trustStorePassword", password(args[2]));
        if (args.length > 3) {
            System.setProperty("javax.net.ssl.keyStore", args[3]);
            System.setProperty("javax.net.ssl.keyStorePassword", password(args[4]));
        }
        try {
            HttpsURLConnection c = (HttpsURLConnection) new URL(args[0]).openConnection();
            c.setReadTimeout(20_000);
            String said = new String(c.getInputStream().readAllBytes(), StandardCharsets.US_ASCII);
            System.out.println(((X509Certificate) c.getServerCertificates()[0]).getSerialNumber().toString(16) + " " + said.trim());
        } catch (Exception e) {
            System.err.println(e);
            System.exit(1);
        }
    }

    static String password(String file) throws Exception {
        return java.nio.file.Files.readAllLines(java.nio.file.Path.of(file)).get(0);
    }
}
